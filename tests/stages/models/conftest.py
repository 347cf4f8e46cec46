"""Tiny real models of other libraries, built from configurations with random weights: no network needed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

TEXT_WORDS = ["a", "good", "bad", "film", "very", "it", "was", "not", "sad", "happy", "and", "the", "of"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT_WORDS]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}

# What each transformers architecture needs to be tiny; the key names its classes: BertConfig, BertForSequenceClassification.
TEXT = {
    "Bert": {**SMALL, "vocab_size": 40},
    "Roberta": {**SMALL, "vocab_size": 40, "pad_token_id": 0},
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40},
    "DebertaV2": {**SMALL, "vocab_size": 40, "pooler_hidden_size": 16},
    "ModernBert": {**SMALL, "vocab_size": 40, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
    "Electra": {**SMALL, "vocab_size": 40, "embedding_size": 16},
}
IMAGE = {
    "ViT": {**SMALL, "image_size": 16, "patch_size": 8},
    "Swin": {"image_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}

# Make a transformers folder: `pretrained("Bert", num_labels=3)`.
Pretrained = Callable[..., Path]


@pytest.fixture
def pretrained(tmp_path: Path) -> Pretrained:
    """Save a tiny transformers classifier with its tokenizer or image processor, as save_pretrained does."""

    def make(architecture: str, folder: str = "", **options: object) -> Path:
        import transformers

        target = tmp_path / (folder or architecture)
        sizes, task = (TEXT[architecture], "Sequence") if architecture in TEXT else (IMAGE[architecture], "Image")
        config = getattr(transformers, f"{architecture}Config")(**{**sizes, "num_labels": 2, **options})
        torch.manual_seed(0)
        network = getattr(transformers, f"{architecture}For{task}Classification")(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        network.save_pretrained(target)
        if task == "Sequence":
            tokenizer().save_pretrained(target)
        else:
            transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(target)
        return target

    return make


def tokenizer() -> object:
    """A word-level tokenizer of thirteen words."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special)
