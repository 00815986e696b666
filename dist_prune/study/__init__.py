"""Comparison of several runs: repeats over seeds in groups, tables, pictures and one page. Reads run folders only."""
