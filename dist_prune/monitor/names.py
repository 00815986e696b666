"""The metric names: one `group/name` each, used as TensorBoard tags and as keys of train records."""

ACCURACY_TRAIN = "accuracy/train"
ACCURACY_DYNAMIC = "accuracy/dynamic"
ACCURACY_CONSENSUS = "accuracy/consensus"
OPEN_RATIO = "gates/open_ratio"
R_POLAR = "gates/r_polar"
MACS_RATIO = "macs/ratio"
IMAGES_PER_SECOND = "speed/images_per_second"
ENERGY_EPOCH = "energy/epoch_joules"
ENERGY_TOTAL = "energy/total_joules"
LEARNING_RATE = "optimizer/lr"
MEAN_ACTIVATION_PICTURE = "gates/mean_activation"

_LOSS_GROUP = "loss/"
_SITE_GROUP = "sites/"


def loss(term: str) -> str:
    """Return the metric name of a loss term, for example `loss/polarization`."""
    return _LOSS_GROUP + term


def is_loss(name: str) -> bool:
    """Return True for the name of a loss term (the total included)."""
    return name.startswith(_LOSS_GROUP)


def term(name: str) -> str:
    """The term of a loss's metric name: the inverse of `loss`."""
    return name.removeprefix(_LOSS_GROUP)


def site(name: str) -> str:
    """The name under which the mean activation of one site is recorded."""
    return _SITE_GROUP + name
