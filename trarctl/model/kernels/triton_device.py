"""What ``trarctl.model.kernels.triton`` and ``triton_layers`` run on the device, as Triton kernels.

A module of its own, since importing it takes the package triton; the derivations are there, and so are the shapes. In
attention, all states lie as [B, N, H, d] without gaps, all statistics as [B, H, T, C].

Each program of attention owns a block of rows of one example and head, and loops over blocks of the other axis.
Statistics of a block are one tile [T, C]. A tile of scores has a tile of classes beside it, in which a hidden key, and
whatever lies beyond the last query or key, is of class -1. A program of the norm holds one row at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e9)  # as in trarctl.model.attention: the log-sum-exp of a class without a key to look at
FAR = tl.constexpr(1e30)  # the exponential of any score less this is 0


@triton.jit
def _locate(num_rows, num_heads, BLOCK: tl.constexpr):
    """The matrix (example and head), example, head and rows of this program."""
    num_blocks = tl.cdiv(num_rows, BLOCK)
    matrix = tl.program_id(0) // num_blocks
    rows = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    return matrix.to(tl.int64), matrix // num_heads, matrix % num_heads, rows


@triton.jit
def _addresses(states, example, head, rows, num_rows, num_heads, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Where rows of [B, N, H, d] are, and which elements there are."""
    dims = tl.arange(0, BLOCK_WIDTH)
    first = (example.to(tl.int64) * num_rows * num_heads + head) * WIDTH
    is_there = (rows[:, None] < num_rows) & (dims[None, :] < WIDTH)
    return states + first + rows[:, None] * (num_heads * WIDTH) + dims[None, :], is_there


@triton.jit
def _load(states, example, head, rows, num_rows, num_heads, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Rows of [B, N, H, d], zero where there are none."""
    addresses, is_there = _addresses(states, example, head, rows, num_rows, num_heads, WIDTH, BLOCK_WIDTH)
    return tl.load(addresses, mask=is_there, other=0.0)


@triton.jit
def _store(states, tile, example, head, rows, num_rows, num_heads, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    addresses, is_there = _addresses(states, example, head, rows, num_rows, num_heads, WIDTH, BLOCK_WIDTH)
    tl.store(addresses, tile.to(states.dtype.element_ty), mask=is_there)


@triton.jit
def _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys):
    """The classes of pairs [T, M]: -1 for a hidden key, and beyond the last query or key."""
    is_pair = (queries[:, None] < num_queries) & (keys[None, :] < num_keys)
    if pair_class is None:
        classes = tl.where(is_pair, 0, -1)
    else:
        pairs = queries[:, None] * num_keys + keys[None, :]
        classes = tl.load(pair_class + pairs, mask=is_pair, other=-1).to(tl.int32)
    if is_padding is not None:
        hidden = tl.load(is_padding + example.to(tl.int64) * num_keys + keys, mask=keys < num_keys, other=1)
        classes = tl.where(hidden[None, :] != 0, -1, classes)
    return classes


@triton.jit
def _of_pairs(table, matrix, queries, num_queries, classes, hidden, NUM_CLASSES: tl.constexpr):
    """Give each pair [T, M] what [B, H, T, C] holds for its query and class, or ``hidden`` for class -1.

    Read from memory, where a query's numbers lie side by side: in registers they would not fit beside the scores.
    """
    rows = table + matrix * num_queries * NUM_CLASSES
    if NUM_CLASSES == 1:
        of_query = tl.load(rows + queries, mask=queries < num_queries, other=hidden)
        found = tl.where(classes == 0, of_query[:, None], hidden)
    else:
        found = tl.load(rows + (queries[:, None] * NUM_CLASSES + classes), mask=classes >= 0, other=hidden)
    return found


@triton.jit
def _keep_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale):
    """What dropout multiplies the map by; an element's own index is the counter, so every kernel finds the same."""
    factor = 1.0
    if seed is not None:
        element = queries[:, None] * num_keys + keys[None, :]
        zero = element * 0
        bits, _, _, _ = tl.philox(tl.load(seed), element, zero + matrix.to(tl.int32), zero, zero)
        factor = tl.where(tl.uint_to_uniform_float(bits) >= dropout, kept_scale, 0.0)
    return factor


@triton.jit
def _class_sums(tile, columns, classes, NUM_CLASSES: tl.constexpr):
    """Add up a tile [T, M] by class: [T, C]."""
    sums = tl.zeros([tile.shape[0], columns.shape[0]], tl.float32)
    for number in tl.static_range(NUM_CLASSES):
        of_class = tl.sum(tl.where(classes == number, tile, 0.0), axis=1)
        sums = tl.where(columns[None, :] == number, of_class[:, None], sums)
    return sums


@triton.jit
def _exponential_sums(scores, columns, classes, NUM_CLASSES: tl.constexpr):
    """For each class in a tile [T, M]: its largest score, and its sum of exponentials of scores less that. Each [T, C].

    A class without keys has ``HIDDEN`` and some number > 0.
    """
    largest = tl.full([scores.shape[0], columns.shape[0]], HIDDEN, tl.float32)
    sums = tl.full([scores.shape[0], columns.shape[0]], 1.0, tl.float32)
    for number in tl.static_range(NUM_CLASSES):
        of_class = tl.where(classes == number, scores, HIDDEN)
        top = tl.max(of_class, axis=1)
        total = tl.sum(tl.exp(of_class - top[:, None]), axis=1)
        largest = tl.where(columns[None, :] == number, top[:, None], largest)
        sums = tl.where(columns[None, :] == number, total[:, None], sums)
    return largest, sums


@triton.jit
def _within_span(largest, sums, contains, span, columns, NUM_CLASSES: tl.constexpr):
    """The softmax of a span at each class's largest score [T, C], and whether the span shows a query nothing [T]."""
    holds = tl.load(contains + span * NUM_CLASSES + columns, mask=columns < NUM_CLASSES, other=0) != 0
    is_seen = holds[None, :] & (largest > HIDDEN / 2)
    top = tl.max(tl.where(is_seen, largest, HIDDEN), axis=1)
    exponentials = tl.where(is_seen, tl.exp(largest - top[:, None]), 0.0)
    total = tl.sum(sums * exponentials, axis=1)
    is_empty = total == 0.0
    return exponentials / tl.where(is_empty, 1.0, total)[:, None], is_empty


@triton.jit
def _statistics(matrix, queries, columns, num_queries, NUM_CLASSES: tl.constexpr):
    """Where a tile [T, C] of [B, H, T, C] is, and which elements there are."""
    first = matrix * num_queries * NUM_CLASSES
    is_there = (columns[None, :] < NUM_CLASSES) & (queries[:, None] < num_queries)
    return first + (queries[:, None] * NUM_CLASSES + columns[None, :]), is_there


@triton.jit
def _weight(span_weights, example, span, NUM_SPANS: tl.constexpr):
    return tl.load(span_weights + example * NUM_SPANS + span).to(tl.float32)


@triton.jit
def forward(
    query,
    key,
    value,
    span_weights,
    pair_class,
    contains,
    is_padding,
    seed,
    out,
    largest_out,
    sums_out,
    factor_out,
    score_scale,
    dropout,
    kept_scale,
    num_heads,
    num_queries,
    num_keys,
    NUM_SPANS: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The result and the log-sum-exp of each class, for a block of queries."""
    matrix, example, head, queries = _locate(num_queries, num_heads, BLOCK_QUERIES)
    columns = tl.arange(0, BLOCK_CLASSES)
    query_tile = _load(query, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)

    largest = tl.full([BLOCK_QUERIES, BLOCK_CLASSES], HIDDEN, tl.float32)
    sums = tl.full([BLOCK_QUERIES, BLOCK_CLASSES], 1.0, tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        classes = _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys)
        top, total = _exponential_sums(scores, columns, classes, NUM_CLASSES)
        larger = tl.maximum(largest, top)
        sums = sums * tl.exp(largest - larger) + total * tl.exp(top - larger)
        largest = larger

    factors = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    uniform = tl.zeros([BLOCK_QUERIES], tl.float32)
    for span in range(NUM_SPANS):
        within, is_empty = _within_span(largest, sums, contains, span, columns, NUM_CLASSES)
        weight = _weight(span_weights, example, span, NUM_SPANS)
        factors += weight * within
        uniform += tl.where(is_empty, weight / num_keys, 0.0)
    statistics, is_there = _statistics(matrix, queries, columns, num_queries, NUM_CLASSES)
    tl.store(largest_out + statistics, largest, mask=is_there)
    tl.store(sums_out + statistics, sums, mask=is_there)
    tl.store(factor_out + statistics, factors, mask=is_there)
    tl.debug_barrier()  # what is read below was written by other threads of this program

    result = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        classes = _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys)
        scores -= _of_pairs(largest_out, matrix, queries, num_queries, classes, FAR, NUM_CLASSES)
        factor = _of_pairs(factor_out, matrix, queries, num_queries, classes, 0.0, NUM_CLASSES)
        blended = tl.exp(scores) * factor + uniform[:, None]
        blended *= _keep_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale)
        result = tl.dot(blended.to(value_tile.dtype), value_tile, result, input_precision=PRECISION)

    _store(out, result, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)


@triton.jit
def backward_queries(
    query,
    key,
    value,
    span_weights,
    pair_class,
    contains,
    is_padding,
    seed,
    gradient,
    largest,
    sums,
    factor,
    mean_out,
    uniform_out,
    of_query,
    of_weights,
    score_scale,
    dropout,
    kept_scale,
    num_heads,
    num_queries,
    num_keys,
    NUM_SPANS: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For a block of queries: their gradient, their part of that of the span weights, and what the keys need."""
    matrix, example, head, queries = _locate(num_queries, num_heads, BLOCK_QUERIES)
    columns = tl.arange(0, BLOCK_CLASSES)
    query_tile = _load(query, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
    gradient_tile = _load(gradient, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)

    class_totals = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        of_map = tl.dot(gradient_tile, tl.trans(value_tile), input_precision=PRECISION)
        of_map *= _keep_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale)
        classes = _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys)
        scores -= _of_pairs(largest, matrix, queries, num_queries, classes, FAR, NUM_CLASSES)
        class_totals += _class_sums(tl.exp(scores) * of_map, columns, classes, NUM_CLASSES)
        total += tl.sum(of_map, axis=1)  # 0 beyond the last key, where the value is
    statistics, is_there = _statistics(matrix, queries, columns, num_queries, NUM_CLASSES)
    largest_tile = tl.load(largest + statistics, mask=is_there, other=HIDDEN)
    sum_tile = tl.load(sums + statistics, mask=is_there, other=1.0)
    factors = tl.load(factor + statistics, mask=is_there, other=0.0)

    pull = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    uniform = tl.zeros([BLOCK_QUERIES], tl.float32)
    for span in range(NUM_SPANS):
        within, is_empty = _within_span(largest_tile, sum_tile, contains, span, columns, NUM_CLASSES)
        weight = _weight(span_weights, example, span, NUM_SPANS)
        average = tl.where(is_empty, total / num_keys, tl.sum(within * class_totals, axis=1))
        pull += weight * within * average[:, None]
        uniform += tl.where(is_empty, weight / num_keys, 0.0)
        # One number a program, added up later in a fixed order: atomics would make no two runs the same.
        of_weight = tl.sum(tl.where(queries < num_queries, average, 0.0), axis=0)
        tl.store(of_weights + tl.program_id(0).to(tl.int64) * NUM_SPANS + span, of_weight)
    tl.store(mean_out + statistics, pull / tl.where(factors > 0.0, factors, 1.0), mask=is_there)
    tl.store(uniform_out + matrix * num_queries + queries, uniform, mask=queries < num_queries)
    tl.debug_barrier()  # what is read below was written by other threads of this program

    result = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        of_map = tl.dot(gradient_tile, tl.trans(value_tile), input_precision=PRECISION)
        of_map *= _keep_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale)
        classes = _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys)
        scores -= _of_pairs(largest, matrix, queries, num_queries, classes, FAR, NUM_CLASSES)
        of_map -= _of_pairs(mean_out, matrix, queries, num_queries, classes, 0.0, NUM_CLASSES)
        of_scores = tl.exp(scores) * of_map * _of_pairs(factor, matrix, queries, num_queries, classes, 0.0, NUM_CLASSES)
        result = tl.dot(of_scores.to(key_tile.dtype), key_tile, result, input_precision=PRECISION)
    _store(of_query, result * score_scale, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)


@triton.jit
def backward_keys(
    query,
    key,
    value,
    pair_class,
    is_padding,
    seed,
    gradient,
    largest,
    factor,
    mean,
    uniform,
    of_key,
    of_value,
    score_scale,
    dropout,
    kept_scale,
    num_heads,
    num_queries,
    num_keys,
    NUM_CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block of keys and their values; tiles are [T, M] here, too."""
    matrix, example, head, keys = _locate(num_keys, num_heads, BLOCK_KEYS)
    key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    key_sum = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    value_sum = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_queries, BLOCK_QUERIES):
        queries = start + tl.arange(0, BLOCK_QUERIES)
        query_tile = _load(query, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
        gradient_tile = _load(gradient, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        classes = _pair_classes(pair_class, is_padding, example, queries, keys, num_queries, num_keys)
        scores -= _of_pairs(largest, matrix, queries, num_queries, classes, FAR, NUM_CLASSES)
        blended = tl.exp(scores) * _of_pairs(factor, matrix, queries, num_queries, classes, 0.0, NUM_CLASSES)
        everywhere = tl.load(uniform + matrix * num_queries + queries, mask=queries < num_queries, other=0.0)
        keep = _keep_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale)
        kept = ((blended + everywhere[:, None]) * keep).to(gradient_tile.dtype)
        value_sum = tl.dot(tl.trans(kept), gradient_tile, value_sum, input_precision=PRECISION)
        of_map = tl.dot(gradient_tile, tl.trans(value_tile), input_precision=PRECISION) * keep
        of_map -= _of_pairs(mean, matrix, queries, num_queries, classes, 0.0, NUM_CLASSES)
        of_scores = (blended * of_map).to(query_tile.dtype)
        key_sum = tl.dot(tl.trans(of_scores), query_tile, key_sum, input_precision=PRECISION)
    _store(of_key, key_sum * score_scale, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    _store(of_value, value_sum, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)


@triton.jit
def _keep_factors(seed, row, dropout, kept_scale, BLOCK_WIDTH: tl.constexpr):
    """What dropout multiplies the elements of a row by, by row and place in it; one draw is enough for four."""
    factor = tl.full([BLOCK_WIDTH], 1.0, tl.float32)
    if seed is not None:
        fours = tl.arange(0, BLOCK_WIDTH // 4)
        zero = fours * 0
        first, second, third, fourth = tl.philox(tl.load(seed), fours, zero + row, zero, zero)
        bits = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
        factor = tl.where(tl.uint_to_uniform_float(bits) >= dropout, kept_scale, 0.0)
    return factor


@triton.jit
def _normed(states, change, place, is_there, factor, eps, WIDTH: tl.constexpr):
    """A row of states + factor * change, less its mean, over its deviation + eps; the deviation; 1 over that sum."""
    summed = tl.load(states + place, mask=is_there, other=0.0).to(tl.float32)
    if change is not None:
        summed += factor * tl.load(change + place, mask=is_there, other=0.0).to(tl.float32)
    centered = tl.where(is_there, summed - tl.sum(summed, axis=0) / WIDTH, 0.0)
    deviation = tl.sqrt(tl.sum(centered * centered, axis=0) / (WIDTH - 1))
    inverse = 1.0 / (deviation + eps)
    return centered * inverse, deviation, inverse


@triton.jit
def norm(
    states,
    change,
    gain,
    bias,
    seed,
    out,
    dropout,
    kept_scale,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Norm one row of states + dropout(change)."""
    row, columns = tl.program_id(0), tl.arange(0, BLOCK_WIDTH)
    is_there, place = columns < WIDTH, row.to(tl.int64) * WIDTH + columns
    factor = _keep_factors(seed, row, dropout, kept_scale, BLOCK_WIDTH)
    normed, _, _ = _normed(states, change, place, is_there, factor, eps, WIDTH)
    scale = tl.load(gain + columns, mask=is_there, other=0.0)
    shift = tl.load(bias + columns, mask=is_there, other=0.0)
    tl.store(out + place, scale * normed + shift, mask=is_there)


@triton.jit
def norm_backward(
    gradient,
    states,
    change,
    gain,
    seed,
    of_states,
    of_change,
    of_weights,
    dropout,
    kept_scale,
    eps,
    num_rows,
    rows_each,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Gradients of some rows of states and change, and what these rows add to those of gain and bias."""
    program, columns = tl.program_id(0), tl.arange(0, BLOCK_WIDTH)
    is_column = columns < WIDTH
    scale = tl.load(gain + columns, mask=is_column, other=0.0)
    of_gain = tl.zeros([BLOCK_WIDTH], tl.float32)
    of_bias = tl.zeros([BLOCK_WIDTH], tl.float32)
    for index in range(rows_each):
        row = program * rows_each + index
        is_there, place = is_column & (row < num_rows), row.to(tl.int64) * WIDTH + columns
        factor = _keep_factors(seed, row, dropout, kept_scale, BLOCK_WIDTH)
        normed, deviation, inverse = _normed(states, change, place, is_there, factor, eps, WIDTH)
        of_row = tl.load(gradient + place, mask=is_there, other=0.0).to(tl.float32)
        of_gain += of_row * normed
        of_bias += of_row
        of_normed = of_row * scale
        # Where all elements are alike, the fraction is 0, and so is what is taken off.
        slope = tl.sum(of_normed * normed, axis=0) / ((WIDTH - 1) * tl.where(deviation == 0.0, 1.0, deviation))
        of_sum = inverse * (of_normed - tl.sum(of_normed, axis=0) / WIDTH) - normed * slope
        tl.store(of_states + place, of_sum.to(of_states.dtype.element_ty), mask=is_there)
        if change is not None:
            tl.store(of_change + place, (factor * of_sum).to(of_change.dtype.element_ty), mask=is_there)
    place = program.to(tl.int64) * 2 * WIDTH + columns
    tl.store(of_weights + place, of_gain, mask=is_column)
    tl.store(of_weights + place + WIDTH, of_bias, mask=is_column)


@triton.jit
def relu_dropout(states, seed, out, dropout, kept_scale, num_elements, BLOCK_WIDTH: tl.constexpr):
    """ReLU and dropout of a block of elements; what is no number stays none."""
    block = tl.program_id(0)
    place = block.to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    is_there = place < num_elements
    tile = tl.load(states + place, mask=is_there, other=0.0).to(tl.float32)
    kept = tl.where(tile <= 0.0, 0.0, tile) * _keep_factors(seed, block, dropout, kept_scale, BLOCK_WIDTH)
    tl.store(out + place, kept.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def relu_dropout_backward(gradient, result, of_states, kept_scale, num_elements, BLOCK_WIDTH: tl.constexpr):
    """The gradient of a block of elements; those with a result of 0 did not pass."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    is_there = place < num_elements
    is_zero = tl.load(result + place, mask=is_there, other=0.0) <= 0.0
    of_result = tl.load(gradient + place, mask=is_there, other=0.0).to(tl.float32) * kept_scale
    tl.store(of_states + place, tl.where(is_zero, 0.0, of_result).to(of_states.dtype.element_ty), mask=is_there)
