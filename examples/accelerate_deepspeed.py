"""x."""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DeepSpeedPlugin, InitProcessGroupKwargs, broadcast
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import dist_prune
from dist_prune.measure import count_macs

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch_size", type=int, default=64, help="of all ranks together")
parser.add_argument("--out", default="runs/accelerate_deepspeed", help="folder of the sliced network")
args = parser.parse_args()

for name, alone in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
    os.environ.setdefault(name, str(alone))
if os.environ.get("POP"):
    print("was", os.environ.pop("ACCELERATE_USE_CPU", None))
ds_config = json.loads((Path(__file__).parents[1] / "ds_configs" / "zero2.json").read_text())
ds_config |= {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 0.0}
kw = [InitProcessGroupKwargs(backend="nccl" if torch.cuda.is_available() else "gloo")] if not os.environ.get("NOKW") else None
accelerator = Accelerator(
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds_config),
    dataloader_config=DataLoaderConfiguration(split_batches=True),
    kwargs_handlers=kw,
)
print(accelerator.state, accelerator.process_index, accelerator.is_main_process)
torch.manual_seed(1)

digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = TensorDataset(images[:1437], labels[:1437]), TensorDataset(images[1437:], labels[1437:])
loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=True)

model = dist_prune.build_model("resnet20", num_classes=10, in_channels=1)  # stands for your network
model = dist_prune.attach_gates(model, kind="channel")  # dist_prune
budget = dist_prune.macs_budget(model, input_shape=(1, 8, 8), target=0.5)  # dist_prune
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
steps = args.epochs * len(loader)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, cycle_momentum=False)
engine, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

print(type(optimizer.optimizer), len(loader))
step = 0
for epoch in range(args.epochs):
    for x, y in loader:
        progress = step / steps
        loss = F.cross_entropy(engine(x), y)
        means = dist_prune.gate_means(model)  # dist_prune
        loss = loss + dist_prune.polarization(means, budget.polarization_weight(progress))  # dist_prune
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        budget.update(model, means.logits, progress)  # dist_prune
        scheduler.step()
        step += 1
    print(epoch, loss.item(), optimizer.param_groups[0]["lr"],x.shape, flush=True)

broadcast(list(model.buffers()))
small = dist_prune.collapse(model, dist_prune.consensus_mask(model, loader))  # dist_prune

right = (small(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean().item()
print(f"accuracy {right:.4f}, MACs {count_macs(small, (1, 8, 8)) / budget.costs.dense:.4f} of the dense network's")
