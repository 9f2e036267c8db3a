"""What ``trarctl.model.kernels.triton`` runs on the device: one Triton kernel forward, two backward.

A module of its own, since importing it takes the package triton; the derivation is there, and so are the shapes. All
states lie as [B, N, H, d] without gaps, all statistics as [B, H, C, T].

Each program owns a block of rows of one example and head, and loops over blocks of the other axis. Statistics of a
block are one tile [T, C]. A tile of scores has a tile of classes beside it, in which a hidden key, and whatever lies
beyond the last query or key, is of class -1.
"""

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e9)  # as in trarctl.model.attention: the log-sum-exp of a class without a key to look at


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
    """The classes of pairs; ``queries`` is a column and ``keys`` a row, or the other way round."""
    is_pair = (queries < num_queries) & (keys < num_keys)
    if pair_class is None:
        classes = tl.where(is_pair, 0, -1)
    else:
        classes = tl.load(pair_class + (queries * num_keys + keys), mask=is_pair, other=-1).to(tl.int32)
    if is_padding is not None:
        hidden = tl.load(is_padding + example.to(tl.int64) * num_keys + keys, mask=keys < num_keys, other=1)
        classes = tl.where(hidden != 0, -1, classes)
    return classes


@triton.jit
def _dropout_factor(seed, matrix, queries, keys, num_keys, dropout, kept_scale):
    """What dropout multiplies the map by; an element's own index is the counter, so every kernel finds the same."""
    factor = 1.0
    if seed is not None:
        element = queries * num_keys + keys
        zero = element * 0
        bits, _, _, _ = tl.philox(tl.load(seed), element, zero + matrix.to(tl.int32), zero, zero)
        factor = tl.where(tl.uint_to_uniform_float(bits) >= dropout, kept_scale, 0.0)
    return factor


@triton.jit
def _column(table, columns, number):
    """One column of a tile [T, C], as [T, 1]."""
    return tl.sum(tl.where(columns[None, :] == number, table, 0.0), axis=1)[:, None]


@triton.jit
def _per_key(table, columns, classes, NUM_CLASSES: tl.constexpr):
    """Give each pair [T, M] the number of its class in [T, C]; what class -1 gets means nothing."""
    result = _column(table, columns, 0)
    for number in tl.static_range(1, NUM_CLASSES):
        result = tl.where(classes == number, _column(table, columns, number), result)
    return result


@triton.jit
def _class_sums(tile, columns, classes, NUM_CLASSES: tl.constexpr):
    """Add up a tile [T, M] by class: [T, C]."""
    sums = tl.zeros([tile.shape[0], columns.shape[0]], tl.float32)
    for number in tl.static_range(NUM_CLASSES):
        of_class = tl.sum(tl.where(classes == number, tile, 0.0), axis=1)
        sums = tl.where(columns[None, :] == number, of_class[:, None], sums)
    return sums


@triton.jit
def _class_maxima(tile, columns, classes, NUM_CLASSES: tl.constexpr):
    """The largest of each class in a tile [T, M]: [T, C]; ``HIDDEN`` for a class without keys."""
    maxima = tl.full([tile.shape[0], columns.shape[0]], HIDDEN, tl.float32)
    for number in tl.static_range(NUM_CLASSES):
        of_class = tl.max(tl.where(classes == number, tile, HIDDEN), axis=1)
        maxima = tl.where(columns[None, :] == number, of_class[:, None], maxima)
    return maxima


@triton.jit
def _within_span(lse, contains, span, columns, NUM_CLASSES: tl.constexpr):
    """The softmax of the classes [T, C] among those of a span, and whether the span shows a query nothing [T]."""
    holds = tl.load(contains + span * NUM_CLASSES + columns, mask=columns < NUM_CLASSES, other=0) != 0
    is_seen = holds[None, :] & (lse > HIDDEN / 2)
    largest = tl.max(tl.where(is_seen, lse, HIDDEN), axis=1)
    exponentials = tl.where(is_seen, tl.exp(lse - largest[:, None]), 0.0)
    total = tl.sum(exponentials, axis=1)
    is_empty = total == 0.0
    return exponentials / tl.where(is_empty, 1.0, total)[:, None], is_empty


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
    lse_out,
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
    sums = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        classes = _pair_classes(
            pair_class, is_padding, example, queries[:, None], keys[None, :], num_queries, num_keys
        )
        larger = tl.maximum(largest, _class_maxima(scores, columns, classes, NUM_CLASSES))
        exponentials = tl.exp(scores - _per_key(larger, columns, classes, NUM_CLASSES))
        sums = sums * tl.exp(largest - larger) + _class_sums(exponentials, columns, classes, NUM_CLASSES)
        largest = larger
    lse = largest + tl.log(tl.where(sums > 0.0, sums, 1.0))  # HIDDEN for a class without keys

    share = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    uniform = tl.zeros([BLOCK_QUERIES], tl.float32)
    for span in range(NUM_SPANS):
        within, is_empty = _within_span(lse, contains, span, columns, NUM_CLASSES)
        weight = _weight(span_weights, example, span, NUM_SPANS)
        share += weight * within
        uniform += tl.where(is_empty, weight / num_keys, 0.0)

    result = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        classes = _pair_classes(
            pair_class, is_padding, example, queries[:, None], keys[None, :], num_queries, num_keys
        )
        in_class = tl.exp(scores - _per_key(lse, columns, classes, NUM_CLASSES))
        blended = tl.where(classes >= 0, in_class * _per_key(share, columns, classes, NUM_CLASSES), 0.0)
        blended += uniform[:, None]
        blended *= _dropout_factor(seed, matrix, queries[:, None], keys[None, :], num_keys, dropout, kept_scale)
        result = tl.dot(blended.to(value_tile.dtype), value_tile, result, input_precision=PRECISION)

    _store(out, result, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
    statistics = (matrix * NUM_CLASSES + columns[None, :]) * num_queries + queries[:, None]
    is_there = (columns[None, :] < NUM_CLASSES) & (queries[:, None] < num_queries)
    tl.store(lse_out + statistics, lse, mask=is_there)


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
    lse_in,
    share_out,
    pull_out,
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
    statistics = (matrix * NUM_CLASSES + columns[None, :]) * num_queries + queries[:, None]
    is_there = (columns[None, :] < NUM_CLASSES) & (queries[:, None] < num_queries)
    lse = tl.load(lse_in + statistics, mask=is_there, other=HIDDEN)

    averages = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        of_map = tl.dot(gradient_tile, tl.trans(value_tile), input_precision=PRECISION)
        of_map *= _dropout_factor(seed, matrix, queries[:, None], keys[None, :], num_keys, dropout, kept_scale)
        classes = _pair_classes(
            pair_class, is_padding, example, queries[:, None], keys[None, :], num_queries, num_keys
        )
        in_class = tl.exp(scores - _per_key(lse, columns, classes, NUM_CLASSES))
        in_class = tl.where(classes >= 0, in_class, 0.0)
        averages += _class_sums(in_class * of_map, columns, classes, NUM_CLASSES)
        total += tl.sum(of_map, axis=1)  # 0 beyond the last key, where the value is

    share = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    pull = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    uniform = tl.zeros([BLOCK_QUERIES], tl.float32)
    for span in range(NUM_SPANS):
        within, is_empty = _within_span(lse, contains, span, columns, NUM_CLASSES)
        weight = _weight(span_weights, example, span, NUM_SPANS)
        average = tl.where(is_empty, total / num_keys, tl.sum(within * averages, axis=1))
        share += weight * within
        pull += weight * within * average[:, None]
        uniform += tl.where(is_empty, weight / num_keys, 0.0)
        # One number a program, added up later in a fixed order: atomics would make no two runs the same.
        of_weight = tl.sum(tl.where(queries < num_queries, average, 0.0), axis=0)
        tl.store(of_weights + tl.program_id(0).to(tl.int64) * NUM_SPANS + span, of_weight)
    tl.store(share_out + statistics, share, mask=is_there)
    tl.store(pull_out + statistics, pull, mask=is_there)
    tl.store(uniform_out + matrix * num_queries + queries, uniform, mask=queries < num_queries)

    result = tl.zeros([BLOCK_QUERIES, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_keys, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(query_tile, tl.trans(key_tile), input_precision=PRECISION) * score_scale
        of_map = tl.dot(gradient_tile, tl.trans(value_tile), input_precision=PRECISION)
        of_map *= _dropout_factor(seed, matrix, queries[:, None], keys[None, :], num_keys, dropout, kept_scale)
        classes = _pair_classes(
            pair_class, is_padding, example, queries[:, None], keys[None, :], num_queries, num_keys
        )
        in_class = tl.exp(scores - _per_key(lse, columns, classes, NUM_CLASSES))
        of_scores = of_map * _per_key(share, columns, classes, NUM_CLASSES)
        of_scores = in_class * (of_scores - _per_key(pull, columns, classes, NUM_CLASSES))
        of_scores = tl.where(classes >= 0, of_scores, 0.0)
        result = tl.dot(of_scores.to(key_tile.dtype), key_tile, result, input_precision=PRECISION)
    _store(of_query, result * score_scale, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)


@triton.jit
def _load_per_key(table, matrix, queries, num_queries, classes, NUM_CLASSES: tl.constexpr):
    """As ``_per_key``, for classes [M, T] and a table in memory: here the queries are what is looped over."""
    first = table + matrix * NUM_CLASSES * num_queries + queries
    result = tl.load(first, mask=queries < num_queries, other=0.0)[None, :]
    for number in tl.static_range(1, NUM_CLASSES):
        of_class = tl.load(first + number * num_queries, mask=queries < num_queries, other=0.0)
        result = tl.where(classes == number, of_class[None, :], result)
    return result


@triton.jit
def backward_keys(
    query,
    key,
    value,
    pair_class,
    is_padding,
    seed,
    gradient,
    lse,
    share,
    pull,
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
    """Gradients of a block of keys and their values; all tiles are [M, T], so that none is turned for a product."""
    matrix, example, head, keys = _locate(num_keys, num_heads, BLOCK_KEYS)
    key_tile = _load(key, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    value_tile = _load(value, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    key_sum = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    value_sum = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    for start in range(0, num_queries, BLOCK_QUERIES):
        queries = start + tl.arange(0, BLOCK_QUERIES)
        query_tile = _load(query, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
        gradient_tile = _load(gradient, example, head, queries, num_queries, num_heads, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(key_tile, tl.trans(query_tile), input_precision=PRECISION) * score_scale
        of_map = tl.dot(value_tile, tl.trans(gradient_tile), input_precision=PRECISION)
        factor = _dropout_factor(seed, matrix, queries[None, :], keys[:, None], num_keys, dropout, kept_scale)
        classes = _pair_classes(
            pair_class, is_padding, example, queries[None, :], keys[:, None], num_queries, num_keys
        )
        in_class = tl.exp(scores - _load_per_key(lse, matrix, queries, num_queries, classes, NUM_CLASSES))
        in_class = tl.where(classes >= 0, in_class, 0.0)
        shares = _load_per_key(share, matrix, queries, num_queries, classes, NUM_CLASSES)
        pulls = _load_per_key(pull, matrix, queries, num_queries, classes, NUM_CLASSES)
        of_scores = in_class * (shares * of_map * factor - pulls)
        everywhere = tl.load(uniform + matrix * num_queries + queries, mask=queries < num_queries, other=0.0)
        blended = (in_class * shares + everywhere[None, :]) * factor
        value_sum = tl.dot(blended.to(gradient_tile.dtype), gradient_tile, value_sum, input_precision=PRECISION)
        key_sum = tl.dot(of_scores.to(query_tile.dtype), query_tile, key_sum, input_precision=PRECISION)
    _store(of_key, key_sum * score_scale, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
    _store(of_value, value_sum, example, head, keys, num_keys, num_heads, WIDTH, BLOCK_WIDTH)
