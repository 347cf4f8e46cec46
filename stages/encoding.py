"""The encoder of a trained classifier over the samples of a split: penultimate features, batch by batch, and the head."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from stages import artifacts, models
from stages.data import Split
from stages.errors import BadValues, UserError
from stages.loading import Samples, batches, check_kind, collate, move, unreadable
from stages.models import Classifier
from stages.runtime import Progress, keep_freed_memory, silent, threads

if TYPE_CHECKING:
    import torch
    from torch import nn

# Samples of the first batch, on which the head is found and the cut is checked.
PROBE_SAMPLES = 8

# Where models come from whose forward pass leaves nothing in the network, so that several threads may run it at once; a
# user's own may.
STATELESS = ("torchvision", "timm")

# The edge in pixels from which convolutions on CPUs gain by channels last.
CHANNELS_LAST_EDGE = 192


def compute_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The type that the encoder computes in: "float32", "bfloat16", "float16", or "auto".

    auto is float32 on CPU and bfloat16 on GPUs with tensor cores for it (float16 on older ones), where the forward pass
    gains from it; what features are stored as is another matter.
    """
    import torch

    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def encoded(
    encode: "Callable[[Any], torch.Tensor]",
    model: Classifier,
    split: Split,
    *,
    batch_size: int,
    workers: int | str,
    device: "torch.device",
    dtype: "torch.dtype",
    what: str,
    stored: "torch.dtype | None" = None,
    order: "torch.Tensor | None" = None,
    skipped: list[UserError] | None = None,
    progress: Progress = silent,
) -> "Generator[tuple[torch.Tensor, torch.Tensor], None, None]":
    """The encoder's features of every sample, or of those in `order`: batches (b, d) with their positions (b,).

    Whoever may not come to the end closes it: threads are limited until then (`_lanes`).

    Args:
        encode: a batch -> features (b, d), of a network in evaluation mode on `device`; see `cut`.
        model: prepares and collates the samples.
        dtype: what the forward pass computes in; see `compute_dtype`.
        what: names the work in `progress`.
        stored: what the features are given in; None is float32.
        skipped: where given, samples that cannot be loaded are left out and their errors added here.

    Raises:
        BadValues: a sample's features are not finite.
        UserError: a sample could not be loaded, and `skipped` is None.
    """
    import torch

    done = 0
    loaded = batches(split, model, batch_size=batch_size, workers=workers, device=device, order=order, skipped=skipped)
    count = threads()
    if device.type == "cpu":
        keep_freed_memory()
    lanes = _lanes(model, device, count)

    def forward(inputs: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        # The modes are the thread's own, and end before a yield: they would hold for whoever asks for the batches as well.
        with torch.no_grad(), torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            features = encode(inputs).float().to(stored or torch.float32)
            return features, torch.isfinite(features).all(dim=1)

    def begun(inputs: Any) -> "Callable[[], tuple[torch.Tensor, torch.Tensor]]":
        """Begin a forward pass; what is returned waits for the features (b, d) and whether they are finite (b,)."""
        if lanes is not None:
            parts = [lanes.submit(forward, part) for part in inputs.split(-(-len(inputs) // count))]

            def joined() -> "tuple[torch.Tensor, torch.Tensor]":
                features, finite = zip(*(part.result() for part in parts), strict=True)
                return torch.cat(features), torch.cat(finite)

            return joined
        features, finite = forward(inputs)
        if device.type != "cuda":
            return lambda: (features, finite)
        said, known = finite.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        known.record()

        def synchronized() -> "tuple[torch.Tensor, torch.Tensor]":
            known.synchronize()
            return features, said

        return synchronized

    late: deque[tuple[Callable[[], tuple[torch.Tensor, torch.Tensor]], torch.Tensor]] = deque()

    def oldest() -> "tuple[torch.Tensor, torch.Tensor]":
        """Features and positions of the batch that was begun first, once they are there and looked at."""
        nonlocal done
        wait, positions = late.popleft()
        features, finite = wait()
        if not bool(finite.all()):
            position = int(positions[(~finite).nonzero()[0, 0]])
            beyond = ", or values beyond float16," if stored == torch.float16 else ""
            raise BadValues(
                f"the model gives NaN or infinity{beyond} for this sample",
                where=split.locate(position),
                do=f"check the model's weights, or set extract.precision{' and extract.dtype' if beyond else ''}: float32",
            )
        done += len(positions)
        progress(what, done, len(split))
        return features, positions

    # A GPU, or the lanes, have the next batch to work on while the last one is looked at and written.
    ahead = 1 if lanes is not None or device.type == "cuda" else 0
    failed: UserError | None = None
    try:
        while True:
            try:
                inputs, positions = next(loaded)
            except StopIteration:
                break
            except UserError as error:
                # What is under way comes first: it may end a part that the next run need not make again.
                failed = error
                break
            late.append((begun(inputs), positions))
            if len(late) > ahead:
                yield oldest()
        while late:
            yield oldest()
        if failed is not None:
            raise failed
    finally:
        if lanes is not None:
            lanes.shutdown(cancel_futures=True)
            torch.set_num_threads(count)


def _lanes(model: Classifier, device: "torch.device", count: int) -> ThreadPoolExecutor | None:
    """Threads that each run the network on a part of a batch; None where one forward pass is to use all of them.

    Threads that share an operator wait for the slowest of them after each, all the more where a loader process takes one
    of the cores now and then.
    """
    import torch

    if device.type != "cpu" or count == 1 or model.spec.get("source") not in STATELESS:
        return None
    # Also here, until the lanes are closed: threads that share what little there is to do would spin beside the lanes.
    torch.set_num_threads(1)
    return ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,))


def head_tensors(head: "nn.Linear") -> "tuple[torch.Tensor, torch.Tensor]":
    """The head's weight (C, d) and bias (C,), of two classes where it has one sigmoid output."""
    import torch

    weight = head.weight.detach()
    bias = head.bias.detach() if head.bias is not None else torch.zeros(len(weight), device=weight.device)
    return artifacts.two_classes(weight, bias) if len(weight) == 1 else (weight, bias)


def cut(model: Classifier, split: Split, device: "torch.device") -> "tuple[Callable[[Any], torch.Tensor], nn.Linear, str]":
    """`models.split` on `device`, checked on the split's first samples: (encoder, head, the head's module name)."""
    model.network.to(device)
    batch = _first_batch(model, split, device)
    encode, head, name = models.split(model, batch)
    return _channels_last(model.network, encode, batch), head, name


def _channels_last(
    network: "nn.Module", encode: "Callable[[Any], torch.Tensor]", batch: Any
) -> "Callable[[Any], torch.Tensor]":
    """The encoder with the images' channels last in memory, where convolutions are faster that way.

    On CPUs the large images alone gain (ResNet-50 on 2 cores: 1.5 times as fast at 224 pixels, 1.05 at 112, 0.8 at 56 x 28).
    """
    import torch
    from torch import nn

    images = isinstance(batch, torch.Tensor) and batch.dim() == 4
    if not images or (batch.device.type == "cpu" and min(batch.shape[2:]) < CHANNELS_LAST_EDGE):
        return encode
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return encode

    def arranged(inputs: Any) -> "torch.Tensor":
        return encode(inputs.contiguous(memory_format=torch.channels_last))

    network.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            arranged(batch[:1])
    except RuntimeError:
        # The network views its activations as they lie in memory, and wants them in the usual order.
        network.to(memory_format=torch.contiguous_format)
        return encode
    return arranged


def _first_batch(model: Classifier, split: Split, device: "torch.device") -> Any:
    """The first samples that can be loaded, PROBE_SAMPLES at most, as the network takes them.

    Raises:
        BadData: none of the split's samples can be loaded.
        UserError: the first sample cannot, and the model or the data says so.
    """
    check_kind(split, model)
    samples: list[Any] = []
    errors: list[UserError] = []
    prepared = Samples(split, model.transform)
    for position in range(len(split)):
        sample = prepared[position]
        if isinstance(sample, UserError):
            errors.append(sample)
        else:
            samples.append(sample)
        if len(samples) == PROBE_SAMPLES:
            break
    if not samples:
        raise unreadable("first", len(split), errors) if len(errors) > 1 else errors[0]
    batch, _, failed = collate(model.collate, samples)
    if failed:
        raise failed[0]
    return move(batch, device)
