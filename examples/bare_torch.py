"""A plain PyTorch loop that trains a ResNet-20 on handwritten digits and ends with half of its MACs.

python examples/bare_torch.py
torchrun --nproc_per_node 2 examples/bare_torch.py

All that was added to the loop are the lines marked "# dist_prune".
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
from dist_prune.measure import count_macs

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch_size", type=int, default=64, help="of all ranks together")
parser.add_argument("--out", default="runs/bare_torch", help="folder of the sliced network")
args = parser.parse_args()

if "RANK" in os.environ:  # set by torchrun
    dist.init_process_group("gloo")
ranks = dist.get_world_size() if dist.is_initialized() else 1
torch.manual_seed(1)

digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1437], labels[:1437]), TensorDataset(images[1437:], labels[1437:])
sampler = DistributedSampler(train) if ranks > 1 else None
loader = DataLoader(train, args.batch_size // ranks, shuffle=sampler is None, sampler=sampler, drop_last=True)

model = dist_prune.build_model("resnet20", num_classes=10, in_channels=1)  # stands for your network
model = dist_prune.attach_gates(model, kind="channel")  # dist_prune
budget = dist_prune.macs_budget(model, input_shape=(1, 8, 8), target=0.5)  # dist_prune
network = DistributedDataParallel(model) if ranks > 1 else model
steps = args.epochs * len(loader)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, cycle_momentum=False)

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
    print(epoch, loss.item(), flush=True)

small = dist_prune.collapse(model, dist_prune.consensus_mask(model, loader))  # dist_prune

right = (small(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean().item()
m = dist_prune.consensus_mask(model, loader); print(m.agreement, budget.spending(1), (dist_prune.masked(model,m)(test.tensors[0]).argmax(1)==test.tensors[1]).float().mean())
model.eval(); print((model(test.tensors[0]).argmax(1)==test.tensors[1]).float().mean())
print(f"accuracy {right:.4f}, MACs {count_macs(small, (1, 8, 8)) / budget.costs.dense:.4f} of the dense network's")
