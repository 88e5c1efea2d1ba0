"""Can resnet18 learn efficientnet-lite0's features from crops of a few photographs (Asano and Saeed 2021)?

`python tools/distil.py [--crops 200000] [--checkpoint FILE]`: the curve is kept in nbs/measured/distil.json, the
network in the checkpoint, and a run that was stopped goes on. R² is of the teacher's features, of new crops: *same*, of
the photographs that the student learns from; *other*, of four that it never saw. 1 is the teacher, 0 their mean.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import ColorJitter, RandomResizedCrop

from finetune_nb import vision
from finetune_nb.engine.photographs import pictures
from finetune_nb.engine.seen import seen_by_head
from lessons import processor

saved = Path(__file__).parent.parent/"nbs"/"measured"/"distil.json"
HELD_OUT = "chelsea", "coffee", "flower", "motorcycle_left"
SIDE, CHUNK, BATCH, RATE, WARM_UP = 96, 1000, 50, 1e-3, 20 # pixels, crops, crops, of AdamW, batches


def crops(photographs, count, seed):
    "uint8[N, 3, S, S]: anywhere, of any size, mirrored, in another light; as many of each photograph"
    torch.manual_seed(seed)
    crop, light = RandomResizedCrop(SIDE, scale=(.02, 1), antialias=True), ColorJitter(.4, .4, .4, .1)
    made = []
    for i in range(count):
        image = light(crop(photographs[i % len(photographs)]))
        if torch.rand(()) < .5: image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        made.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(made)


def explained(student, images, wanted):
    "R²"
    student.eval()
    with torch.no_grad(): found = torch.cat([student.call(batch) for batch in inputs_of(student, images)])
    return 1 - ((found - wanted)**2).sum().item() / ((wanted - wanted.mean(0))**2).sum().item()


def inputs_of(model, images): return [model.collate(list(images[i:i + BATCH])) for i in range(0, len(images), BATCH)]


def main(most, checkpoint):
    teacher = vision.classifier("efficientnet-lite0", 2, image_size=SIDE)
    found = pictures()
    learning = [found[name] for name in found if name not in HELD_OUT]
    unseen = dict(other=crops([found[name] for name in HELD_OUT], 400, 2**31), same=crops(learning, 400, 2**31 + 1))
    def features(images): return torch.tensor(seen_by_head(teacher, images, progress=False)[0])
    first = features(crops(learning, CHUNK, seed=0))
    mean, spread = first.mean(0), first.std(0) + 1e-3
    judged = {name: (features(images) - mean) / spread for name, images in unseen.items()}
    student = vision.classifier("resnet18-fractal", first.shape[1], image_size=SIDE)
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=1e-4)
    seen, curve = 0, []
    if checkpoint.exists(): # go on
        kept = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(kept["student"])
        optimizer.load_state_dict(kept["optimizer"])
        seen, curve = kept["seen"], kept["curve"]
    while seen < most:
        began = time.process_time()
        images = crops(learning, CHUNK, seed=1 + seen)
        wanted, losses = (features(images) - mean) / spread, []
        student.train()
        for i, batch in enumerate(inputs_of(student, images)):
            step = seen // BATCH + i
            done = step * BATCH / most
            optimizer.param_groups[0]["lr"] = RATE * min(1, step / WARM_UP, 1 + math.cos(math.pi * done))
            loss = F.mse_loss(student.call(batch), wanted[i * BATCH:(i + 1) * BATCH])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        seen += CHUNK
        good = {name: round(explained(student, images, judged[name]), 4) for name, images in unseen.items()}
        curve.append(dict(crops=seen, loss=round(float(np.mean(losses)), 4), **good,
                          seconds=round(time.process_time() - began, 1)))
        print(curve[-1], flush=True)
        whole = dict(student=student.state_dict(), optimizer=optimizer.state_dict(), seen=seen, curve=curve)
        torch.save(whole, checkpoint)
        about = dict(machine=processor(), held_out=HELD_OUT, side=SIDE, rows=curve)
        saved.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--crops", type=int, default=200_000)
    asked.add_argument("--checkpoint", type=Path, default=Path("distil.pt"))
    told = asked.parse_args()
    main(told.crops, told.checkpoint)
