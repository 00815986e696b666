"""A plain PyTorch loop: a ResNet-20 learns handwritten digits and ends with half of its MACs.

python examples/bare_torch.py
torchrun --nproc_per_node 2 examples/bare_torch.py

The lines marked "# dist_prune" are all that was added to the loop.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dist_prune
from dist_prune.measure.macs import count_macs

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch_size", type=int, default=64, help="of all ranks together")
parser.add_argument("--out", default="runs/bare_torch", help="folder for the sliced network")
args = parser.parse_args()

if "RANK" in os.environ:  # set by torchrun
    dist.init_process_group("gloo")
rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(1)

digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1437], labels[:1437]), (images[1437:], labels[1437:])
sampler = DistributedSampler(train) if ranks > 1 else None
loader = DataLoader(train, args.batch_size // ranks, shuffle=sampler is None, sampler=sampler, drop_last=True)

model = dist_prune.build_model("resnet20", num_classes=10, in_channels=1)  # your network in its place
model = dist_prune.attach_gates(model, kind="channel")  # dist_prune
budget = dist_prune.macs_budget(model, input_shape=(1, 8, 8), target=0.5)  # dist_prune
network = DistributedDataParallel(model) if ranks > 1 else model
steps = args.epochs * len(loader)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
if rank == 0:
    print(f"processes: {ranks}")

step = 0
for epoch in range(args.epochs):
    if sampler:
        sampler.set_epoch(epoch)
    for x, y in loader:
        progress = step / steps
        loss = F.cross_entropy(network(x), y)
        means = dist_prune.gate_means(model)  # dist_prune
        loss = loss + dist_prune.polarization(means, budget.polarization_weight(progress))  # dist_prune
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        budget.update(model, means.logits, progress)  # dist_prune
        scheduler.step()
        step += 1
    if rank == 0:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

small = dist_prune.collapse(model, dist_prune.consensus_mask(model, loader))  # dist_prune

if rank == 0:
    dist_prune.save_sliced(small, args.out, input_shape=(1, 8, 8))
    with torch.no_grad():
        accuracy = (small(test[0]).argmax(1) == test[1]).float().mean()
    share = count_macs(small, (1, 8, 8)) / budget.costs.dense
    print(f"sliced network in {args.out}: accuracy {accuracy:.4f}, MACs {share:.4f} of the dense network's")
if ranks > 1:
    dist.destroy_process_group()
