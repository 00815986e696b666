"""RunConfig: typed, validated, and overridden from the command line without silent mistakes."""

import pytest
from pydantic import ValidationError

from dist_prune import UserError
from dist_prune.config import GatesConfig, RunConfig, override, settings_keys, without_effect
from dist_prune.config import fields as describe
from dist_prune.config.schedules import Constant, Ramp
from dist_prune.config.settings import _NEEDS
from dist_prune.methods.base import Task
from dist_prune.methods.baselines import Dense, UniformDepth
from dist_prune.methods.consensus import Consensus


def config(**changes) -> RunConfig:
    return RunConfig(name="test", data="none", model="resnet20", **changes)


def test_defaults_are_the_papers_settings_for_cifar10():
    """arXiv 2302.10798, section 5.1."""
    c = config()
    assert (c.epochs, c.global_batch_size, c.lr, c.momentum, c.weight_decay) == (350, 256, 0.1, 0.9, 5e-4)
    assert (c.lr_schedule.kind, c.lr_schedule.milestones, c.lr_schedule.gamma) == ("steps", (60, 120, 160), 0.1)
    assert (c.seed, c.nesterov, c.gates.hidden) == (1, False, 16)
    assert (c.gates.kind, c.gates.head, c.gates.dense_layers, c.polarization) == ("layer", "ste", 2, None)


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("epochs=3", lambda c: c.epochs == 3),
        ("lr=1e-2", lambda c: c.lr == 0.01),
        ("model=resnet56", lambda c: c.model == "resnet56"),
        ("data=/shards/with=sign", lambda c: c.data.location == "/shards/with=sign"),
        ("nesterov=true", lambda c: c.nesterov is True),
        ("target_macs=null", lambda c: c.target_macs is None),
        ("gates.hidden=8", lambda c: c.gates.hidden == 8),
        ("gates.open_bias=null", lambda c: c.gates.open_bias is None),
        ("gates.position=after", lambda c: c.gates.position == "after"),
        ("gates.dense_layers=1", lambda c: c.gates.dense_layers == 1),
        ("gates.flatten=true", lambda c: c.gates.flatten is True),
        ("budget.prune_end=0.45", lambda c: c.budget.prune_end == 0.45),
        ("budget.allow_empty=true", lambda c: c.budget.allow_empty is True),
        ("polarization=null", lambda c: c.polarization is None),
        ("lr_schedule.milestones=[1, 2]", lambda c: c.lr_schedule.milestones == (1, 2)),
        ("polarization=3", lambda c: c.polarization == Constant(value=3)),
        ("polarization.end=4", lambda c: c.polarization == Ramp(end=4, to_epoch=2)),
        ('activation={"kind": "ramp", "end": 1, "to_epoch": 2}', lambda c: c.activation == Ramp(end=1, to_epoch=2)),
        ("augment.policy=randaugment", lambda c: c.augment.policy == "randaugment"),
        ("augment.cutmix=1", lambda c: c.augment.cutmix == 1.0),
        ("bad_data=skip", lambda c: c.bad_data == "skip"),
        ("cache.folder=/scratch/shards", lambda c: c.cache.folder == "/scratch/shards"),
        ("model_args.shortcut=A", lambda c: c.model_args == {"shortcut": "A"}),
        ('model_args={"width": 8}', lambda c: c.model_args == {"width": 8}),
    ],
)
def test_settings_are_applied_by_dotted_key(setting, read):
    before = config(polarization=Ramp(end=2, to_epoch=2))
    dumped = before.model_dump()
    assert read(override(before, [setting]))
    assert before.model_dump() == dumped


def test_later_settings_win_and_none_change_nothing():
    assert override(config(), ["epochs=3", "epochs=4"]).epochs == 4
    assert override(config(), []) == config()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epoch=3", r"unknown recipe key 'epoch'.*did you mean 'epochs'"),
        ("gate.kind=layer", r"'gate'.*did you mean 'gates'"),
        ("gates.hiden=3", r"'gates\.hiden'.*did you mean 'gates\.hidden'"),
        ("lr_schedule.knid=steps", r"did you mean 'lr_schedule\.kind'"),
        ("model.depth=20", r"unknown recipe key 'model\.depth'"),
        ("polarization.start=1", r"'polarization\.start'"),  # a constant has no start
        ("=3", "unknown recipe key ''"),
        ('gates={"hiden": 3}', r"'gates\.hiden'.*did you mean 'gates\.hidden'"),
        ("target_weight=2", r"unknown recipe key 'target_weight'"),  # budgets need none any more
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(setting, said):
    with pytest.raises(UserError, match=said):
        override(config(), [setting])


@pytest.mark.parametrize("setting", ["epochs", "", "gates.kind:layer"])
def test_a_setting_without_equals_sign_is_malformed(setting):
    with pytest.raises(UserError, match="expected key=value"):
        override(config(), [setting])


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("epochs=0", "epochs"),
        ("epochs=many", "epochs"),
        ("epochs=2.5", "epochs"),
        ("lr=-1", "lr"),
        ("lr=NaN", "lr"),
        ("momentum=1", "momentum"),
        ("target_macs=1.5", "target_macs"),
        ("target_macs=0", "target_macs"),
        ("global_batch_size=1", "global_batch_size"),
        ("gates.kind=layers", r"gates\.kind"),
        ("gates.head=gauss", r"gates\.head"),
        ("gates=none", "gates"),
        ("gates.position=beside", r"gates\.position"),
        ("gates.dense_layers=3", r"gates\.dense_layers"),
        ("budget.polarize_end=1.5", r"budget\.polarize_end"),
        ("budget.prune_start=0.6", "budget"),  # after its end
        ("budget.prune_end=0.7", "budget"),
        ("budget.warmup_end=0.31", "budget"),
        ("lr_schedule.kind=wave", r"lr_schedule\.kind"),
        ("augment.flip=perhaps", r"augment\.flip"),
        ("augment.policy=autoaugment", r"augment\.policy"),
        ("augment.mixup=-1", r"augment\.mixup"),
        ("bad_data=ignore", "bad_data"),
        ("max_skipped=-1", "max_skipped"),
        ("cache.gigabytes=0", r"cache\.gigabytes"),
        ("seed=-1", "seed"),
        ("model=7", "model"),
        ('polarization={"kind": "wave"}', "polarization"),
        ("polarization=NaN", r"polarization\.value"),
        ("polarization=Infinity", r"polarization\.value"),
        ("polarization=-3", "polarization"),
        ('activation={"kind": "ramp", "end": -1, "to_epoch": 3}', "activation"),
        ('activation={"kind": "ramp", "end": 1, "to_epoch": Infinity}', r"activation\.to_epoch"),
        ('polarization={"kind": "steps", "values": [[0, NaN]]}', r"polarization\.values"),
        ("gates.temperature=0", r"gates\.temperature"),
        ("gates.temperature=-1", r"gates\.temperature"),
        # A steps schedule is 0 before its first epoch.
        ('gates.temperature={"kind": "steps", "values": [[3, 1]]}', r"gates\.temperature"),
        ("gates.open_bias=Infinity", r"gates\.open_bias"),
        ("lr=1e9", "lr"),
        ("epochs=100000000", "epochs"),
        ("lr_schedule.milestones=[-1]", r"lr_schedule\.milestones"),
    ],
)
def test_wrong_values_are_refused_in_one_line_that_names_key_and_value(setting, key):
    with pytest.raises(UserError, match=rf"recipe key '{key}") as caught:
        override(config(), [setting])
    assert "\n" not in str(caught.value)


def test_a_collapse_before_the_budget_is_met_is_refused():
    settings = ["epochs=20", "target_macs=0.5", "budget.prune_end=0.4"]
    assert override(config(), [*settings, "freeze.collapse_epoch=8"]).freeze.collapse_epoch == 8
    with pytest.raises(UserError, match=r"collapse_epoch=7 comes before budget\.prune_end"):
        override(config(), [*settings, "freeze.collapse_epoch=7"])


def test_arguments_of_the_model_are_free_at_any_depth():
    assert override(config(), ["model_args.block_args.attn_layer=se"]).model_args == {
        "block_args": {"attn_layer": "se"}
    }


def test_an_argument_of_the_model_that_is_a_value_has_no_parts():
    with pytest.raises(UserError, match="model_args"):
        override(config(), ["model_args.width=8", "model_args.width.low=3"])


def test_the_order_of_settings_does_not_matter_for_gates_of_kind_none():
    """Kind none once overwrote the method, so that a later kind left the run dense."""
    none = override(config(), ["gates.kind=none"])
    assert next(Consensus(Task(none, 10, (3, 8, 8))).phases()).name == "dense"
    again = override(none, ["gates.kind=layer"])
    assert again == config()
    assert next(Consensus(Task(again, 10, (3, 8, 8))).phases()).has_gates


@pytest.mark.parametrize(
    ("method", "settings", "fields"),
    [
        (Dense, ["method=dense", "target_macs=0.5"], ["target_macs"]),
        (Dense, ["method=dense", "gates.kind=channel", "round_to=8"], ["gates.kind", "round_to"]),
        (Dense, ["method=dense", "target_macs=null"], []),
        (Consensus, ["gates.position=after"], ["gates.position"]),
        (Consensus, ["gates.position=between"], ["gates.position"]),  # a default, but set by hand
        (Consensus, ["gates.flatten=true", "gates.kind=channel"], []),
        (Consensus, ["gates.flatten=true"], ["gates.flatten"]),
        (Consensus, ["gates.kind=none", "target_macs=0.5"], ["target_macs"]),
        (Consensus, ["gates.temperature=0.5"], ["gates.temperature"]),
        (Consensus, ["gates.temperature=0.5", "gates.head=gumbel"], []),
        (Consensus, ['gates={"head": "gumbel", "position": "after"}'], ["gates.position"]),
        (Consensus, ["budget.prune_end=0.5"], ["budget.prune_end"]),
        (Consensus, ["budget.prune_end=0.5", "target_macs=0.5"], []),
        (Consensus, ["freeze.thaw_after=7"], ["freeze.thaw_after"]),
        (Consensus, ["lr_schedule.kind=cosine", "lr_schedule.milestones=[1]"], ["lr_schedule.milestones"]),
        (UniformDepth, ["method=uniform_depth", "target_macs=0.5", "activation=1"], ["activation"]),
        (Consensus, ["lr_schedule.warmup_epochs=2", "label_smoothing=0.1"], []),
        (Consensus, ["lr_schedule.warmup_share=0.2"], ["lr_schedule.warmup_share"]),
        (Consensus, ["betas=[0.8,0.9]"], ["betas"]),
        (Consensus, ["betas=[0.8,0.9]", "optimizer=adamw", "nesterov=true"], ["nesterov"]),
        (Consensus, ["weight_decay=0", "decay_gates_and_norms=false"], ["decay_gates_and_norms"]),
        (Dense, ["method=dense", "gates.backprop_to_input=true"], ["gates.backprop_to_input"]),
        (Consensus, ["gates.backprop_to_input=true", "gates.logit_scale=0.5"], []),
        (Consensus, ["augment.crop_area=0.3"], ["augment.crop_area"]),
        (Consensus, ["augment.crop_area=0.3", "augment.random_resized_crop=true"], []),
        (Consensus, ["cache.gigabytes=4"], ["cache.gigabytes"]),
        (Consensus, ["cache.gigabytes=4", "data=s3://bucket/shards"], []),
        (Consensus, ["cache.decoded_gigabytes=0"], []),
        (Consensus, ["cache.decoded_gigabytes=0", "data.order=stream"], ["cache.decoded_gigabytes"]),
    ],
)
def test_a_field_that_is_set_and_does_nothing_is_named(method, settings, fields):
    lines = without_effect(override(config(), settings), method.reads, settings_keys(settings))
    assert [line.split(" has no effect: ")[0] for line in lines] == fields


def test_whatever_a_field_needs_is_a_field():
    keys = {key for key, _, _ in describe(config())}
    sections = {key.partition(".")[0] for key in keys}
    assert {need.partition("=")[0] for need in _NEEDS.values()} <= keys
    assert _NEEDS.keys() <= keys | sections


def test_every_field_says_what_it_is_and_errors_about_it_say_so():
    assert [key for key, _, about in describe(config()) if not about] == []
    with pytest.raises(UserError, match="it is: keep multiples of this many channels"):
        override(config(), ["round_to=0"])


def test_nesterov_without_momentum_is_refused_before_the_run_starts():
    """torch's SGD would raise when the run is being built."""
    with pytest.raises(UserError, match="nesterov"):
        override(config(), ["nesterov=true", "momentum=0"])


def test_a_config_does_not_change_and_knows_its_fields():
    c = config()
    with pytest.raises(ValidationError):
        c.epochs = 3
    with pytest.raises(ValidationError, match="epoch"):
        config(epoch=3)


def test_a_config_survives_json():
    c = config(polarization=Ramp(end=2, to_epoch=3), model_args={"width": 8}, gates=GatesConfig(open_bias=None))
    assert RunConfig.model_validate_json(c.model_dump_json()) == c


def test_the_location_of_the_data_alone_stands_for_their_section_and_changes_nothing_else_of_it():
    assert config().data.location == "none"
    chosen = override(config(), ["data.order=stream", "data.samples=10", "data=/elsewhere"])
    assert (chosen.data.location, chosen.data.order, chosen.data.samples) == ("/elsewhere", "stream", 10)
    assert override(config(), ['data={"location": "x", "shuffle": 7}']).data.shuffle == 7


def test_commands_need_to_be_allowed_and_two_ways_of_evaluating_exclude_each_other():
    for setting in ("data=pipe:cat x.tar", "eval_data=pipe:cat x.tar"):
        with pytest.raises(UserError, match="pipe: runs a shell command: it needs allow_pipes=true"):
            override(config(), [setting])
        assert override(config(), [setting, "allow_pipes=true"]).allow_pipes
    with pytest.raises(UserError, match="eval_data and eval_share exclude each other"):
        override(config(), ["eval_data=x", "eval_share=0.1"])
