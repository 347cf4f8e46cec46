"""The schema of params.yaml: one section per stage, named like it, beside `data` and `model`.

Each parameter stands once, here: its type, range, default and one line of help. `nsfcli.params` reads the file and makes the
command line's options from the same lines.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Workers = Annotated[int, Field(ge=0)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
# Counts beyond any use, which other programs' integers still hold.
Size = Annotated[int, Field(ge=1, lt=2**31)]
# Up to what float32 holds.
Rate = Annotated[float, Field(gt=0, le=1e38)]
# Beyond, nothing is learned from the samples, or nothing else counts.
Strength = Annotated[float, Field(ge=1e-12, le=1e12)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no silent conversions."""

    # A command reads a few of the sections: the validators of the others are never built.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


FORMAT = "How the data is laid out."

# Parameters that several formats have.
Root = Annotated[Text, Field(description="The folder with the data.")]
TextColumn = Annotated[Text | None, Field(description="Column with the text, where the data is texts.")]
SecondTextColumn = Annotated[Text | None, Field(description="Column with the second text, where it is pairs.")]
LabelColumn = Annotated[Text, Field(description="Column with the class.")]
AttributeColumn = Annotated[
    Text | list[Text] | None, Field(description="Column with the attribute, or several; read by evaluate and compare alone.")
]
ClassNames = Annotated[list[Text] | None, Field(description="Names of classes 0, 1, ...")]
AttributeNames = Annotated[list[Text] | None, Field(description="Names of attributes 0, 1, ...")]
DropEmpty = Annotated[bool, Field(description="Leave out samples whose text is empty.")]
OnError = Annotated[Literal["stop", "skip"], Field(description="A sample that cannot be read: stop, or skip and count it.")]


class DominoesData(Section):
    """The embedded demo, or any pairing of digits and items from the full MNIST and Fashion-MNIST."""

    format: Literal["dominoes"] = Field(description=FORMAT)
    root: Root = "data/dominoes"
    items: list[Text] = Field(["coat", "dress"], min_length=2, description="Fashion-MNIST classes, the labels.")
    digits: list[Annotated[int, Field(ge=0, le=9)]] = Field(
        [0, 1], min_length=2, description="MNIST digits, the attributes; the i-th agrees with the i-th item."
    )
    train_size: Size = Field(6000, description="Dominoes in the train split.")
    val_size: Size = Field(2000, description="Dominoes in the val split.")
    test_size: Size = Field(2000, description="Dominoes in the test split.")
    train_bias: Share = Field(0.99, description="Share of train dominoes whose digit agrees with the label.")
    val_bias: Share = Field(0.9, description="The same share in val.")
    test_bias: Share | None = Field(None, description="The same share in test; null balances all groups.")
    seed: Seed = Field(0, description="Of the pairing.")


class FolderData(Section):
    """A tree of images, root/split/class/image."""

    format: Literal["folder"] = Field(description=FORMAT)
    root: Root
    on_error: OnError = "stop"


class TableData(Section):
    """A table with a row per sample."""

    format: Text = Field(description=FORMAT)
    file: Text = Field(description="The table; with {split} in its name, one per split.")
    root: Text | None = Field(None, description="The folder that images' paths start from; null is the table's own.")
    path_column: Text = Field("path", description="Column with the image's path.")
    text_column: TextColumn = None
    second_text_column: SecondTextColumn = None
    label_column: LabelColumn = "label"
    split_column: Text = Field("split", description="Column with the split: train, val, test or 0, 1, 2.")
    attribute_column: AttributeColumn = None
    class_names: ClassNames = None
    attribute_names: AttributeNames = None
    drop_empty: DropEmpty = False
    on_error: OnError = "stop"


class CsvData(TableData):
    """A CSV file with a row per image or text."""

    format: Literal["csv"] = Field(description=FORMAT)


class ParquetData(TableData):
    """A Parquet file with a row per image or text."""

    format: Literal["parquet"] = Field(description=FORMAT)


class JsonlData(TableData):
    """A JSON lines file with an object per image or text."""

    format: Literal["jsonl"] = Field(description=FORMAT)


class HuggingFaceData(Section):
    """A DatasetDict of Hugging Face datasets, saved to disk."""

    format: Literal["huggingface"] = Field(description=FORMAT)
    root: Root
    image_column: Text = Field("image", description="Column with the image.")
    text_column: TextColumn = None
    second_text_column: SecondTextColumn = None
    label_column: LabelColumn = "label"
    attribute_column: AttributeColumn = None
    class_names: ClassNames = None
    attribute_names: AttributeNames = None
    drop_empty: DropEmpty = False
    on_error: OnError = "stop"


class BenchmarkData(Section):
    """A benchmark in the layout of its owners."""

    format: Text = Field(description=FORMAT)
    root: Root
    on_error: OnError = "stop"


class WaterbirdsData(BenchmarkData):
    """Waterbirds: birds on land or water."""

    format: Literal["waterbirds"] = Field(description=FORMAT)


class CelebAData(BenchmarkData):
    """CelebA: faces, by default hair colour against gender."""

    format: Literal["celeba"] = Field(description=FORMAT)
    target: Text = Field("Blond_Hair", description="CelebA's attribute that is the class.")
    attribute: Text = Field("Male", description="CelebA's attribute that is the spurious one.")


class MultiNLIData(BenchmarkData):
    """MultiNLI: inference against negation."""

    format: Literal["multinli"] = Field(description=FORMAT)
    # As the owners' files name them; no parameters, but what `nsf predict` looks for in tables.
    text_column: ClassVar[str] = "sentence1"
    second_text_column: ClassVar[str] = "sentence2"


class CivilCommentsData(BenchmarkData):
    """CivilComments: toxicity against mentions of identities."""

    format: Literal["civilcomments"] = Field(description=FORMAT)
    # As with MultiNLI.
    text_column: ClassVar[str] = "comment_text"
    identities: Literal["any"] | list[Text] = Field("any", description="Identities of which any is the attribute.")


class CheXpertData(BenchmarkData):
    """CheXpert: no finding against sex and race."""

    format: Literal["chexpert"] = Field(description=FORMAT)


SOURCE = "Where the classifier comes from."
WEIGHTS = "Path of a state dict (.pt, .pth, .safetensors), or the source's own (DEFAULT); null is random."
ImageSize = Size | Annotated[list[Size], Field(min_length=2, max_length=2)]
IMAGE_SIZE = "Edge of the center crop, or [height, width] to resize to."


class TorchvisionModel(Section):
    """One of torchvision's image classifiers."""

    source: Literal["torchvision"] = Field("torchvision", description=SOURCE)
    architecture: Text = Field("resnet18", description="The architecture's name in that source.")
    weights: Text | None = Field(None, description=WEIGHTS)
    image_size: ImageSize = Field(224, description=IMAGE_SIZE)


class TimmModel(Section):
    """One of timm's image classifiers (pip install 'nsf[timm]')."""

    source: Literal["timm"] = Field(description=SOURCE)
    architecture: Text = Field(description="The architecture's name in that source.")
    weights: Text | None = Field(None, description=WEIGHTS)
    image_size: ImageSize | None = Field(None, description=IMAGE_SIZE)


class TransformersModel(Section):
    """A text or image classifier of Hugging Face transformers."""

    source: Literal["transformers"] = Field(description=SOURCE)
    name: Text = Field(description="A folder that save_pretrained wrote, or an id of the Hugging Face hub.")
    max_length: Size | None = Field(None, description="Tokens a text, longer ones are cut; null is the model's limit.")


class CallableModel(Section):
    """Any classifier: a function that returns (encoder, head, transform)."""

    source: Literal["callable"] = Field(description=SOURCE)
    function: Text = Field(description="module:function, returning (encoder, head, transform).")
    options: dict[str, Any] = Field({}, description="Keyword arguments of the function.")
    checkpoint: Text | None = Field(None, description="The file that the function loads, for export to repair a copy of.")


class TrainSection(Section):
    """ERM training of the classifier."""

    epochs: Size = Field(3, description="Passes over the training split.")
    # Batch norm makes nothing of a single sample.
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = Field(32, description="Samples a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW.")
    learning_rate: Rate = Field(0.003, description="The optimizer's.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD's.")
    weight_decay: Annotated[float, Field(ge=0, le=100)] = Field(0.0001, description="The optimizer's.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Of the learning rate.")
    seed: Seed = Field(0, description="Of the initialisation and the order of samples.")
    workers: Workers = Field("auto", description="Loader processes; auto fits the machine.")


class ExtractSection(Section):
    """Penultimate features."""

    splits: list[Literal["train", "val", "test"]] = Field(
        ["val", "test"], min_length=1, description="Which splits to extract."
    )
    batch_size: Size = Field(256, description="Samples a forward pass.")
    workers: Workers = Field("auto", description="Loader processes; auto fits the machine.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward pass; auto is float32 on CPU and mixed on GPU."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="What the features are stored as.")
    shard_samples: Size | None = Field(None, description="Samples a features file; null writes one file a split.")


class IdentifySection(Section):
    """No parameters: the nearest centroid decides."""


class NeutralizeSection(Section):
    """No parameters: the midpoint is the center."""


class EliminateSection(Section):
    """The map T that pulls samples to their centers."""

    steps: Auto | Size = Field(
        "auto", description="Full-batch AdamW steps; auto ends where ten lower the loss by under 1 %."
    )
    learning_rate: Rate = Field(0.001, description="AdamW's.")


class UpdateSection(Section):
    """The new linear head."""

    solver: Literal["auto", "published"] = Field("auto", description="Group-balanced regression, or the paper's training.")
    regularization: Auto | Strength = Field("auto", description="Of solver auto: inverse strength C; auto cross-validates.")
    steps: Size = Field(500, description="Of solver published: steps, half rescued and half conforming samples each.")
    learning_rate: Rate = Field(0.001, description="Of solver published: AdamW's.")
    seed: Seed = Field(0, description="Of the folds; of solver published: of the initialisation and the batches.")


class EvaluateSection(Section):
    """No parameters: accuracies are counted."""


# In the order of `stages.baselines.BASELINES`.
Method = Literal["erm", "last-layer", "class-balanced", "dfr", "afr", "jtt", "self", "published", "auto"]


class CompareSection(Section):
    """NSF beside the baselines."""

    seeds: Size = Field(3, description="How many seeds the means and deviations are over.")
    methods: list[Method] = Field(list(get_args(Method)), min_length=1, description="Which methods to compare.")


class DistributedSection(Section):
    """Several processes for the six stages; results do not depend on it, so no stage of dvc.yaml does."""

    launch: Text | None = Field(
        None, description="What starts them, such as torchrun --nproc-per-node 2; null is one process."
    )


# The key that tells apart the variants of a section, and the variant where none is named.
TAGS = {"data": ("format", None), "model": ("source", "torchvision")}

SECTIONS: Mapping[str, tuple[type[Section], ...]] = {
    "data": (
        DominoesData,
        FolderData,
        CsvData,
        ParquetData,
        JsonlData,
        HuggingFaceData,
        WaterbirdsData,
        CelebAData,
        MultiNLIData,
        CivilCommentsData,
        CheXpertData,
    ),
    "model": (TorchvisionModel, TimmModel, TransformersModel, CallableModel),
    "train": (TrainSection,),
    "extract": (ExtractSection,),
    "identify": (IdentifySection,),
    "neutralize": (NeutralizeSection,),
    "eliminate": (EliminateSection,),
    "update": (UpdateSection,),
    "evaluate": (EvaluateSection,),
    "compare": (CompareSection,),
    "distributed": (DistributedSection,),
}
