"""The DeepSpeed JSON: what it may say, what is refused by name, and how batches are cut."""

import json
from pathlib import Path

import pytest

from dist_prune import UserError
from dist_prune.engine.ds_config import Batching, check_ds_config, load_ds_config, resolve_batching

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_fit_one_to_eight_ranks(path):
    config = load_ds_config(path)
    for world_size in (1, 2, 4, 8):
        assert resolve_batching(config, 256, world_size).global_batch == 256


def test_something_is_shipped_for_every_stage():
    stages = {load_ds_config(path).get("zero_optimization", {}).get("stage", 0) for path in SHIPPED}
    assert stages == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"zero_optimization": {"stage": 2, "overlap_comm": True}, "gradient_clipping": 1.0},
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "zero_optimization": {"stage": 3}},
        {"torch_autocast": {"enabled": True, "dtype": "float16"}, "zero_optimization": {"stage": 2}},
        {"torch_autocast": {"enabled": True, "dtype": "float16"}, "gradient_clipping": 1.0},
        {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0},
        {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True}},
    ],
    ids=json.dumps,
)
def test_what_works_is_let_through(config):
    check_ds_config(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": "Adam"}}, "'optimizer' does not belong here: the recipe owns"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' does not belong here: the recipe owns"),
        ({"compression_training": {}}, "'compression_training'"),
        ({"elasticity": {"enabled": True}}, "'elasticity'"),
        ({"tensorboard": {"enabled": True}}, "'tensorboard'"),
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation'; did you mean 'zero_optimization'"),
        ({"gradient_cliping": 1.0}, "did you mean 'gradient_clipping'"),
        ({"train_batch_size": "auto"}, "'train_batch_size' is \"auto\""),
        ({"zero_optimization": {"stage": "auto"}}, r"'zero_optimization\.stage' is \"auto\""),
        (
            {"zero_optimization": {"offload_param": {"device": "auto"}}},
            r"'zero_optimization\.offload_param\.device' is \"auto\"",
        ),
        ({"zero_optimization": 2}, "'zero_optimization' must be an object"),
        ({"bf16": True}, "'bf16' must be an object"),
        ({"fp16": None}, "'fp16' must be an object"),
        ({"torch_autocast": True}, "'torch_autocast' must be an object"),
        ({"zero_optimization": {"stage": 4}}, r"'zero_optimization\.stage'.*4"),
        ({"zero_optimization": {"stage": True}}, r"'zero_optimization\.stage'.*True"),
        ({"zero_optimization": {"stage": "2"}}, r"'zero_optimization\.stage'.*'2'"),
        ({"zero_optimization": {"memory_efficient_linear": True}}, "memory_efficient_linear"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm' false would let"),
        ({"bf16": {"enabled": True}}, "'torch_autocast' with dtype bfloat16"),
        ({"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}}, "'bf16' and 'torch_autocast' contradict"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "'bf16' and 'fp16' contradict"),
        ({"fp16": {"enabled": True}, "torch_autocast": {"enabled": True}}, "'fp16' and 'torch_autocast' contradict"),
        ({"torch_autocast": {"enabled": True, "dtyp": "bfloat16"}}, r"'torch_autocast\.dtyp'; did you mean 'dtype'"),
        ({"torch_autocast": {"enabled": True, "dtype": "float8"}}, r"'torch_autocast\.dtype'.*'float8'"),
        (
            {
                "torch_autocast": {"enabled": True, "dtype": "float16"},
                "gradient_clipping": 1.0,
                "zero_optimization": {"stage": 2},
            },
            "'gradient_clipping' with float16",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_trains_wrongly_or_not_at_all_is_refused_by_name(config, said):
    with pytest.raises(UserError, match=said):
        check_ds_config(config)


def test_a_refusal_names_the_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"optimizer": {}}')
    with pytest.raises(UserError, match=r"mine\.json: 'optimizer'"):
        load_ds_config(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"gradient_clipping": NaN}', r"mine\.json: NaN is no number"),
        ('{"gradient_clipping": -Infinity}', r"mine\.json: -Infinity is no number"),
        ('{"fp16": {"enabled": true, "enabled": false}}', r"mine\.json: 'enabled' stands there 2 times"),
        ("{", r"mine\.json is not valid JSON"),
        ("[" * 100_000, r"mine\.json is not valid JSON"),
        ("[]", r"mine\.json: .* must be a JSON object"),
        ("", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tmp_path, content, said):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        load_ds_config(path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read.*nowhere\.json: No such file"):
        load_ds_config(tmp_path / "nowhere.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not valid JSON"):
        load_ds_config(tmp_path / "binary.json")


MICRO, STEPS, TOTAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"


@pytest.mark.parametrize(
    ("config", "world_size", "micro", "accumulation"),
    [
        ({}, 1, 256, 1),
        ({}, 4, 64, 1),
        ({MICRO: 32}, 1, 32, 8),
        ({MICRO: 32}, 4, 32, 2),
        ({MICRO: 64}, 4, 64, 1),
        ({STEPS: 4}, 2, 32, 4),
        ({STEPS: 2, MICRO: 32}, 4, 32, 2),
        ({TOTAL: 256}, 2, 128, 1),
        ({TOTAL: 256, MICRO: 16, STEPS: 8}, 2, 16, 8),
        ({MICRO: 2}, 128, 2, 1),
    ],
)
def test_the_global_batch_is_cut_by_micro_batch_and_ranks(config, world_size, micro, accumulation):
    batching = resolve_batching(config, 256, world_size)
    assert batching == Batching(micro, accumulation, world_size)
    assert batching.global_batch == 256


@pytest.mark.parametrize(
    ("config", "global_batch", "world_size", "said"),
    [
        ({}, 256, 3, "256 cannot be divided into 3 ranks x 1 .*multiple of 3"),
        ({STEPS: 3}, 256, 2, "2 ranks x 3 accumulation.*multiple of 6"),
        ({STEPS: 0}, 256, 2, "cannot be divided"),
        ({STEPS: "2"}, 256, 2, "cannot be divided"),
        ({STEPS: None}, 256, 2, "cannot be divided"),
        ({MICRO: 48}, 256, 1, "256 is not a multiple of 1 ranks x micro-batch 48"),
        ({MICRO: 64}, 256, 3, r"3 ranks x micro-batch 64 = 192"),
        ({MICRO: 512}, 256, 1, "not a multiple"),
        ({MICRO: 0}, 256, 1, f"'{MICRO}'.*not 0"),
        ({MICRO: -4}, 256, 1, f"'{MICRO}'.*not -4"),
        ({MICRO: "32"}, 256, 1, f"'{MICRO}'.*'32'"),
        ({MICRO: 2.5}, 256, 1, f"'{MICRO}'.*2.5"),
        ({MICRO: True}, 256, 1, f"'{MICRO}'.*True"),
        ({MICRO: 1}, 256, 1, "batch norm"),
        ({}, 4, 4, "batch norm"),
        ({MICRO: 64, STEPS: 2}, 256, 1, f"'{STEPS}' is 2 .*but 4 follows"),
        ({TOTAL: 128}, 256, 1, f"'{TOTAL}' is 128 .*but 256 follows"),
        ({TOTAL: 512, MICRO: 64, STEPS: 8}, 256, 1, f"'{STEPS}' is 8"),
    ],
)
def test_batches_that_do_not_divide_or_contradict_are_refused(config, global_batch, world_size, said):
    with pytest.raises(UserError, match=said):
        resolve_batching(config, global_batch, world_size)
