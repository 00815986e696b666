"""The loop of bare_torch.py in Hugging Face Accelerate, with DeepSpeed: the same lines were added to it.

pip install -e '.[examples]'
python examples/accelerate_deepspeed.py
torchrun --nproc_per_node 2 examples/accelerate_deepspeed.py
accelerate launch --use_deepspeed --num_processes 2 examples/accelerate_deepspeed.py

The lines marked "# dist_prune" are all that was added to the loop.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DeepSpeedPlugin, InitProcessGroupKwargs
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dist_prune
from dist_prune.measure.macs import count_macs

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch_size", type=int, default=64, help="of all ranks together")
parser.add_argument("--out", default="runs/accelerate_deepspeed", help="folder for the sliced network")
args = parser.parse_args()

if "RANK" not in os.environ:  # no launcher: without these, DeepSpeed looks for MPI
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
ds_config = json.loads((Path(__file__).parents[1] / "ds_configs" / "zero2.json").read_text())
ds_config["train_micro_batch_size_per_gpu"] = "auto"  # Accelerate takes it from the DataLoader
ds_config["gradient_clipping"] = 0.0  # by default DeepSpeed clips at 1
accelerator = Accelerator(
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds_config),
    # On CPUs, without a backend, Accelerate takes every rank for the only one.
    kwargs_handlers=[InitProcessGroupKwargs(backend="nccl" if torch.cuda.is_available() else "gloo")],
    dataloader_config=DataLoaderConfiguration(split_batches=True),
)
torch.manual_seed(1)

digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1437], labels[:1437]), (images[1437:], labels[1437:])
loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=True)

model = dist_prune.build_model("resnet20", num_classes=10, in_channels=1)  # your network in its place
model = dist_prune.attach_gates(model, kind="channel")  # dist_prune
budget = dist_prune.macs_budget(model, input_shape=(1, 8, 8), target=0.5)  # dist_prune
steps = args.epochs * len(loader)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
network, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
accelerator.print(f"processes: {accelerator.num_processes}, {accelerator.distributed_type}")

step = 0
for epoch in range(args.epochs):
    for x, y in loader:
        progress = step / steps
        loss = F.cross_entropy(network(x), y)
        means = dist_prune.gate_means(model)  # dist_prune
        loss = loss + dist_prune.polarization(means, budget.polarization_weight(progress))  # dist_prune
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        budget.update(model, means.logits, progress)  # dist_prune
        scheduler.step()
        step += 1
    accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

small = dist_prune.collapse(model, dist_prune.consensus_mask(model, loader))  # dist_prune

if accelerator.is_main_process:
    dist_prune.save_sliced(small, args.out, input_shape=(1, 8, 8))
    with torch.no_grad():
        accuracy = (small.cpu()(test[0]).argmax(1) == test[1]).float().mean()
    share = count_macs(small, (1, 8, 8)) / budget.costs.dense
    print(f"sliced network in {args.out}: accuracy {accuracy:.4f}, MACs {share:.4f} of the dense network's")
accelerator.end_training()
