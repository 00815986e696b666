"""The metric names: one `group/name` each, used as TensorBoard tags and as keys of train records."""

LOSS = "loss/"  # before the name of a loss term
SITE = "sites/"  # before the name of a site, for its mean activation
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
