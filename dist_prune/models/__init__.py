"""Networks: sites, CIFAR ResNets, the residual blocks of other libraries, and building by name."""
