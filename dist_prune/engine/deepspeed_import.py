"""The only import of DeepSpeed, silent and quick; other files import its parts from here."""

import contextlib
import importlib
import io
from typing import Any

from dist_prune.runtime.environment import prepare_environment

prepare_environment()
with contextlib.redirect_stdout(io.StringIO()):
    import deepspeed
    from deepspeed import utils as deepspeed_utils
    from deepspeed.runtime import compiler
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # Every optimizer is compared with DeepSpeed's Muon, whose decorators load torch's whole compiler, which adds a
    # quarter to what it takes to start. Imported here, it is not compiled.
    compile_, compiler.compile = compiler.compile, lambda: lambda function: function
    with contextlib.suppress(ImportError):  # then there is nothing to compare with
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    compiler.compile = compile_
    # On CPUs DeepSpeed would compile an all-reduce for tensor-parallel inference, which training never calls, and leave
    # 69 MB of it in /dev/shm for each rank, or crash where there is less room.
    comm: Any = importlib.import_module("deepspeed.comm.torch")  # its package has torch itself under that name
    comm.build_shm_op = lambda: None

__all__ = ["DeepSpeedConfig", "DeepSpeedZeroConfig", "ZeroParamStatus", "deepspeed", "deepspeed_utils"]
