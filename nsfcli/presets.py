"""The published experiments: data set, backbone, ERM recipe, and the steps of eliminate and update (NSF, section 4.1)."""

from collections.abc import Mapping
from typing import Any

# Torchvision's first ImageNet weights, which the published experiments start from.
RESNET50 = {"source": "torchvision", "architecture": "resnet50", "weights": "IMAGENET1K_V1", "image_size": 224}
SGD = {"optimizer": "sgd", "learning_rate": 0.003, "momentum": 0.9, "weight_decay": 0.0001, "schedule": "cosine"}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.00001, "schedule": "linear", "batch_size": 16, "epochs": 10}


def _bert(max_length: int) -> dict[str, Any]:
    return {"source": "transformers", "name": "bert-base-uncased", "max_length": max_length}


# Preset -> section -> values that differ from the defaults.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "waterbirds": {
        "data": {"format": "waterbirds", "root": "data/waterbirds"},
        "model": RESNET50,
        "train": {**SGD, "batch_size": 32, "epochs": 100},
        "eliminate": {"steps": 10},
        "update": {"solver": "published", "steps": 500},
    },
    "celeba": {
        "data": {"format": "celeba", "root": "data/celeba"},
        "model": RESNET50,
        "train": {**SGD, "batch_size": 100, "epochs": 20},
        "eliminate": {"steps": 350},
        "update": {"solver": "published", "steps": 110},
    },
    "multinli": {
        "data": {"format": "multinli", "root": "data/multinli"},
        "model": _bert(128),
        "train": ADAMW,
        "eliminate": {"steps": 1200},
        "update": {"solver": "published", "steps": 1500},
    },
    "civilcomments": {
        "data": {"format": "civilcomments", "root": "data/civilcomments"},
        "model": _bert(300),
        "train": ADAMW,
        "eliminate": {"steps": 300},
        "update": {"solver": "published", "steps": 100},
    },
    "chexpert": {
        "data": {"format": "chexpert", "root": "data/chexpert"},
        "model": RESNET50,
        "train": {**SGD, "batch_size": 100, "epochs": 20},
        "eliminate": {"steps": 650},
        "update": {"solver": "published", "steps": 10000},
    },
}
