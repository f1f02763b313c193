"""Made the files beside it, with vqtool as of commit 34accfb (0.2.0.dev0): python make.py FOLDER."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import torch

from vqtool import conditions, denoisers, kernels
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.priors import Origin, Prior, load_prior
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig

os.chdir(sys.argv[1])
torch.manual_seed(0)
tokenizer = Tokenizer(VqVaeConfig(6, 2, (4, 4, 4), (1, 1, 1), (1, 1, 1)))
tokenizer.codebook.normal_()
save_tokenizer("tokenizer.safetensors", tokenizer, history=[{"step": "made"}], summary={"psnr": 20.0})
tokenizer = load_tokenizer("tokenizer.safetensors")
images = torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24).sin()
tokens = tokenizer.encode(images)

captions = ["a red cat", "the dog", "a red dog", "the cat"]
grids = np.arange(24, dtype=np.uint16).reshape(4, 2, 3) % 6
header = GridHeader(6, (2, 3), (16, 24), tokenizer.fingerprint, "tokenizer.safetensors", "none", ({"step": "encode"},))
with GridWriter("tok.h5", header) as writer:
    writer.write(GridBatch(grids, list("abcd"), ["red", "blue", "red", "blue"], captions))
masked = replace(header, holes=True)
with GridWriter("masked.h5", masked) as writer:
    writer.write(GridBatch(np.where(grids == 2, 6, grids).astype(np.uint8), list("abcd"), None, None))

conditioner = conditions.build("caption", None, captions)
network = denoisers.build(
    "transformer",
    {"codebook_size": 6, "grid_size": (2, 3), "num_steps": 8, "num_layers": 1, "width": 8, "num_heads": 2,
     "mlp_ratio": 1, "vocabulary_size": conditioner.vocabulary_size, "max_length": conditioner.max_length},
)  # fmt: skip
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
kernel = kernels.build("mask-replace", schedule="paper", codebook_size=6, num_steps=8)
origin = Origin(tokenizer.fingerprint, "tokenizer.safetensors", (2, 3), (16, 24), "none")
Prior(kernel, network, "transformer", conditioner, origin, history=({"step": "train-prior"},)).save("prior.safetensors")
prior = load_prior("prior.safetensors")
x_t = torch.tensor([[[0, 6, 2], [6, 4, 6]]])
log_x0 = prior.log_x0(x_t, torch.tensor([5]), conditioner.encode(["a red cat"]))
with open("expected.json", "w") as file:
    json.dump({"tokens": tokens.tolist(), "log_x0": log_x0.tolist(), "grids": grids.tolist()}, file)
