"""Writes tests/golden/transformers.safetensors: tiny networks of Hugging Face's transformers, and what they answer.

    python scripts/write_transformers_golden.py        # needs `pip install transformers`; written by version 5.24

For each network: its weights by the names that it has in memory and by those in its files, pixels, and logits.
"""

import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

FILE = Path(__file__).parents[1] / "tests" / "golden" / "transformers.safetensors"
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
VIT |= {"patch_size": 8, "num_labels": 3}
NETWORKS = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig(**VIT), 32),
    "deit": (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig(**VIT), 32),
    "convnext": (
        transformers.ConvNextForImageClassification,
        transformers.ConvNextConfig(hidden_sizes=[4, 8, 8, 12], depths=[1, 1, 2, 1], num_labels=3),
        64,
    ),
    "swin": (
        transformers.SwinForImageClassification,
        transformers.SwinConfig(
            image_size=64, embed_dim=4, depths=[1, 1, 2], num_heads=[1, 1, 2], window_size=4, num_labels=3
        ),
        64,
    ),
    "resnet": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(
            embedding_size=64, hidden_sizes=[4, 8, 8, 12], depths=[1, 1, 2, 1], layer_type="basic", num_labels=3
        ),
        64,
    ),
}


def main() -> None:
    torch.manual_seed(0)
    found = {}
    for kind, (network, config, side) in NETWORKS.items():
        model = network(config).eval()
        for weight in model.parameters():
            weight.data.normal_(0, 0.3)
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        model.half().float()  # so that half precision holds the weights
        pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors")
            found |= {f"{kind}.pixels": pixels, f"{kind}.logits": model(pixels / 127.5 - 1).logits}
        found |= {f"{kind}.memory.{name}": value.half() for name, value in model.state_dict().items()}
        found |= {f"{kind}.file.{name}": value.half() for name, value in saved.items()}
    save_file(found, FILE, {"transformers": transformers.__version__})


if __name__ == "__main__":
    main()
