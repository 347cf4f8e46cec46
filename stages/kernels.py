"""The inner loops over features on a CPU, compiled by numba: each row is read from memory once and worked on in cache.

Why own loops: PyTorch makes every step of a formula a pass of its own over the block, which is three to five times the one
read that the formulas need (`python -m benchmarks.speed` measures both). Importing numba takes a fifth of a second, so
that `passes` takes these for large features alone.

All of them release the GIL, so that threads can share the rows. What is summed over rows is added to float64 outputs, at
most CHUNK rows at a time where the terms are float32: the result depends on the number of threads and processes by
rounding errors of float64 alone. Features may be stored in half the bytes: float16 is given as uint16 and bfloat16 as int16,
the same bits, for numba has neither.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Rows whose float32 terms are summed in float32.
CHUNK = 256

# Sums in another order, and multiplications fused with additions; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}


def _loop(function: Callable[..., Any]) -> Any:
    """A function compiled when it is first called, and kept for the next process where there is a place to write."""
    compiled = partial(njit, nogil=True, fastmath=FAST)
    try:
        return compiled(cache=True)(function)
    except RuntimeError:  # neither beside the code nor in the home folder: a read-only image, and a user without a home
        return compiled()(function)


def _row(x: Any, i: Any, buffer: Any) -> Any:
    """Row i of x as float32, by way of the buffer (d,) uint32 where it is stored as something else."""
    raise NotImplementedError


@overload(_row, inline="always")
def _typed_row(x: Any, i: Any, buffer: Any) -> Any:
    """Which of the functions below takes the place of `_row`; numba wants all of one signature."""
    if x.dtype == types.float32:
        return _as_it_is
    return _half if x.dtype == types.uint16 else _brain


def _as_it_is(x: Any, i: Any, buffer: Any) -> Any:
    return x[i]


def _half(x: Any, i: Any, buffer: Any) -> Any:
    # Exponent and mantissa moved into float32's places are the number times 2^-112, subnormal numbers too.
    row = buffer.view(np.float32)
    for j in range(x.shape[1]):
        bits = np.uint32(x[i, j])
        buffer[j] = ((bits & np.uint32(0x7FFF)) << np.uint32(13)) | ((bits & np.uint32(0x8000)) << np.uint32(16))
    for j in range(x.shape[1]):
        row[j] *= np.float32(5.192296858534828e33)
    return row


def _brain(x: Any, i: Any, buffer: Any) -> Any:
    for j in range(x.shape[1]):
        buffer[j] = np.uint32(np.uint16(x[i, j])) << np.uint32(16)
    return buffer.view(np.float32)


@_loop
def sums(x: Any, first: int, groups: Any, out: Any) -> None:
    """out[g] += the rows of group g; groups (n,) int64, out (G, d) float64; a group below 0 is left out, and not read.

    first: the number of row 0 among all samples. What is added in float32 are the rows between multiples of CHUNK of
    these numbers, wherever x begins: the same whatever the share of a process or a thread.
    """
    rows, d = x.shape
    buffer = np.empty(d, np.uint32)
    small = np.zeros(out.shape, np.float32)
    start = 0
    while start < rows:
        stop = min(rows, CHUNK - (first + start) % CHUNK + start)
        for i in range(start, stop):
            if groups[i] >= 0:
                row, total = _row(x, i, buffer), small[groups[i]]
                for j in range(d):
                    total[j] += row[j]
        for group in range(out.shape[0]):
            total, whole = small[group], out[group]
            for j in range(d):
                whole[j] += np.float64(total[j])
                total[j] = np.float32(0)
        start = stop


@_loop
def best(x: Any, only: Any, weight: Any, bias: Any, classes: int, near: Any, doubt: Any, out: Any) -> None:
    """out[k, i] = the class of the highest x_i . weight[k C + c] + bias[k C + c], the first of equals, as float64 has it.

    Decided in float32 by the differences from class 0, and again in float64 where rounding might have decided.

    Args:
        only: (n,) bool, the rows to do; no other is read.
        weight, bias: (K C, d), (K C,) float64.
        near: (K C, d) float32, the weights less those of their head's class 0.
        doubt: (K,) float64, the error of a score of `near`, for a row of norm 1, at most.
        out: (K, n) int64.
    """
    d = x.shape[1]
    buffer = np.empty(d, np.uint32)
    for i in range(x.shape[0]):
        if not only[i]:
            continue
        row = _row(x, i, buffer)
        norm = -1.0
        for k in range(weight.shape[0] // classes):
            at = k * classes
            highest, second, chosen = 0.0, -np.inf, 0
            for c in range(1, classes):
                ours = near[at + c]
                total = np.float32(0)
                if norm < 0:
                    squares = np.float32(0)
                    for j in range(d):
                        squares += row[j] * row[j]
                        total += row[j] * ours[j]
                    norm = np.sqrt(np.float64(squares))
                else:
                    for j in range(d):
                        total += row[j] * ours[j]
                score = np.float64(total) + bias[at + c] - bias[at]
                if score > highest:
                    highest, second, chosen = score, highest, c
                elif score > second:
                    second = score
            if not highest - second > 2 * norm * doubt[k]:
                highest, chosen = -np.inf, 0
                for c in range(classes):
                    exact = weight[at + c]
                    sure = 0.0
                    for j in range(d):
                        sure += np.float64(row[j]) * exact[j]
                    if sure + bias[at + c] > highest:
                        highest, chosen = sure + bias[at + c], c
            out[k, i] = chosen


@_loop
def pull(x: Any, first: int, labels: Any, scale: Any, offsets: Any, share: float, out: Any) -> float:
    """One step of `eliminate` over all rows of x: returns the sum of ||r_i||, r_i = x_i * scale + offsets[label].

    first: the number of row 0 among all samples. What is added in float32 are the rows between multiples of CHUNK of
    these numbers, wherever x begins: the same whatever the share of a process or a thread.

    out[0] += sum u_i and out[1] += sum u_i * x_i with u_i = share * r_i / ||r_i||; scale (d,), offsets (C, d) float32,
    out (2, d) float64.
    """
    d = x.shape[1]
    buffer = np.empty(d, np.uint32)
    directions, products = np.zeros(d, np.float32), np.zeros(d, np.float32)
    distance = 0.0
    rows, start = x.shape[0], 0
    while start < rows:
        stop = min(rows, CHUNK - (first + start) % CHUNK + start)
        for i in range(start, stop):
            row, offset = _row(x, i, buffer), offsets[labels[i]]
            squares = np.float32(0)
            for j in range(d):
                residual = row[j] * scale[j] + offset[j]
                squares += residual * residual
            norm = np.sqrt(squares)
            distance += np.float64(norm)
            # A sample that lies on its center pulls nowhere.
            if norm > 0:
                weight = np.float32(share / norm)
                for j in range(d):
                    unit = weight * (row[j] * scale[j] + offset[j])
                    directions[j] += unit
                    products[j] += unit * row[j]
        for j in range(d):
            out[0, j] += np.float64(directions[j])
            out[1, j] += np.float64(products[j])
            directions[j] = np.float32(0)
            products[j] = np.float32(0)
        start = stop
    return distance


@_loop
def slope(x: Any, rows: Any, labels: Any, shares: Any, weight: Any, bias: Any, out: Any) -> float:
    """The cross-entropy of a linear head on some rows, sum shares[k] * CE(head(x), label), and its gradient.

    Softmax does not change when the last class's logit is taken from all: the head is given as differences from it.

    Args:
        rows, labels: (k,) int64, the rows to take, some perhaps twice, and their labels in [0, C).
        shares: (k,) float64.
        weight, bias: (C - 1, d) float32, (C - 1,) float64, less those of the last class.
        out: (C - 1, d + 1) float64, to which the gradients of the first classes' weights and, last, biases are added; that
            of the last class is what makes their sum zero.
    """
    d, others = x.shape[1], weight.shape[0]
    buffer = np.empty(d, np.uint32)
    logits = np.empty(others, np.float64)
    loss = 0.0
    for k in range(len(rows)):
        row, label, share = _row(x, rows[k], buffer), labels[k], shares[k]
        highest = 0.0
        for c in range(others):
            ours = weight[c]
            total = np.float32(0)
            for j in range(d):
                total += row[j] * ours[j]
            logits[c] = np.float64(total) + bias[c]
            highest = max(highest, logits[c])
        whole = np.exp(-highest)
        for c in range(others):
            whole += np.exp(logits[c] - highest)
        loss += share * (np.log(whole) + highest - (logits[label] if label < others else 0.0))
        for c in range(others):
            error = share * (np.exp(logits[c] - highest) / whole - (1.0 if c == label else 0.0))
            slopes = out[c]
            slopes[d] += error
            for j in range(d):
                slopes[j] += error * np.float64(row[j])
    return loss
