"""The mutants of the kernels: those that follow from the text, and those that were thought out."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from emulator.mutate import Mutant, all_of, changed

from lmkan_cupy.cuda_engine import kernel_source

SOURCES = {
    each.name: kernel_source.read(each.name)
    for each in sorted(files("lmkan_cupy.cuda").iterdir(), key=lambda each: each.name)
    if each.name.endswith((".cu", ".cuh"))
}

GRID, STENCIL, VECTORS, RECORD = "grid.cuh", "stencil.cuh", "row_vectors.cuh", "record.cuh"
FORWARD, BY_RING, PACK = "forward.cu", "forward_ring.cu", "pack.cu"
TILE, CELL, RING = "tile.cuh", "cell.cuh", "ring.cuh"
SORT, BACKWARD, PENALTY = "sort.cu", "backward.cu", "hessian_penalty.cu"
CHAIN, NETWORK = "chain.cuh", "network.cu"
STRETCH, SUMS, DIFFERENCES = "stretch.cuh", "cell_sums.cuh", "differences.cuh"

POISON = "0 * own.fraction.at[0]"
OF_WEIGHTS = "static_cast<long long>(layer.in_features)"
ADDED_CHUNK = "row + Pairs::chunk_of_lane(t, N);\n#pragma unroll"
DOTTED_CHUNK = "row + Pairs::chunk_of_lane(t, N);\n        Pairs::CHUNK value"

THOUGHT_OUT = [
    (GRID, "x > 0 ? 1 - tail : tail", "x > 0 ? tail : 1 - tail", "sigma mirrored"),
    (GRID, "REAL(NUM_GRIDS - 1)", "REAL(NUM_GRIDS)", "last interval + 1"),
    (STENCIL, "h1.lower * h2.upper", "h1.upper * h2.lower", "weights exchanged"),
    (
        STENCIL,
        "h2.along * h1.lower - h1.along * h2.upper",
        "h2.along * h1.lower + h1.along * h2.upper",
        "sign of a weight's slope",
    ),
    (
        STENCIL,
        "return {{of.at[1], of.at[0]}};",
        "return of;",
        "slopes: u and v exchanged",
    ),
    (STENCIL, "(corner >> 1) * NUM_KNOTS", "(corner >> 1) * NUM_GRIDS", "row above"),
    (VECTORS, "begin + k * LANES * VECTOR < out_features", "begin < out_features", "tail"),
    (VECTORS, "lane_index() * VECTOR", "lane_index()", "vectors overlap"),
    (RECORD, "sorted_samples[2 * at + 1]", "sorted_samples[2 * at]", "cell of a record"),
    (FORWARD, "accumulate ? *target : 0", "0", "overwrites"),
    (FORWARD, "LANES", "LANES - 1", "a pair twice", "begin += LANES"),
    (FORWARD, "task / tiles", "task / (tiles + 1)", "tiles miscounted"),
    (FORWARD, "each < SPLIT", "each < SPLIT - 1", "a part left out"),
    (TILE, "lane % CHUNKS * 16", "0", "all lanes begin with the same chunk"),
    (TILE, "step = -step;", "", "turned, and goes on in the old direction"),
    (TILE, "hats = {hats.upper, hats.lower, -hats.along};", "", "hats in the old order"),
    (
        TILE,
        "hats = {hats.upper, hats.lower, -hats.along};",
        "hats = {hats.upper, hats.lower, hats.along};",
        "slope not turned",
    ),
    (TILE, "i / 2 * BLOCKS + j / 2", "i / 2 * (BLOCKS - 1) + j / 2", "blocks overlap"),
    (TILE, "slot_of(i, j + 1) - slot_of(i, j)", "1", "neighbour in another block"),
    (TILE, "block % BLOCKS * 2 + slot % 2", "block % BLOCKS * 2", "node of a row"),
    (CELL, "fabsf(weights.corner[corner])", "weights.corner[corner]", "sizes with signs"),
    (CELL, "fminf(size, 0x1p125f)", "size", "scale without an inverse"),
    (CELL, "0x01000000u", "0x00000000u", "scale too small"),
    (CELL, "weight[3] * inverse", "weight[3]", "weight not scaled"),
    (CELL, "corner % 2", "corner % 2 == 0", "weights", "corner % 2 ? __high2half2"),
    (CELL, "factors.scale", "2", "scale of 2", "add_product(sum[k], factors.scale"),
    (CELL, "value[2 * k + 1]", "value[2 * k]", "pairs of outputs twice"),
    (CELL, "0xffff0000u", "0xfffffff0u", "a tail of the lower half"),
    (CELL, "lower(chunk.z)", "lower(chunk.x)", "first words twice"),
    (RING, "WARPS", "1", "one warp empties a stage", "start_barrier(empty + stage * 8, WARPS)"),
    (RING, "HAS_BULK_COPIES ? 1 : THREADS", "1", "one thread fills a stage"),
    (
        RING,
        "(n / STAGES ^ 1) & 1",
        "1",
        "parity to fill",
        "(n / STAGES ^ 1) & 1);\n            arrive_expecting",
    ),
    (RING, "n / STAGES & 1", "0", "parity to read"),
    (RING, "TILE_BYTES", "TILE_BYTES / 2", "half a tile", "full + stage * 8, TILE_BYTES"),
    (
        RING,
        "arrive_with_copies(full + stage * 8);",
        "arrive(full + stage * 8);",
        "arrives without its copies",
    ),
    (RING, "threadIdx.x == n % WARPS * 32", "threadIdx.x % 32 == 0", "all warps fill"),
    (BY_RING, "n + AHEAD", "n + AHEAD + 1", "a tile left out"),
    (BY_RING, "points += task.stride;", "points += batch;", "stride of packed x"),
    (BY_RING, "first_pair = split * run;", "first_pair = 0;", "every run the first"),
    (BY_RING, "in_bunch % together", "in_bunch % BUNCH", "tiles of an incomplete bunch"),
    (BY_RING, "in_bunch / together", "in_bunch / BUNCH", "samples of these"),
    (
        BY_RING,
        "block / (BUNCH * blocks_of_tile) * BUNCH",
        "block / (BUNCH * blocks_of_tile)",
        "bunches overlap",
    ),
    (BY_RING, "blockIdx.x / blocks_of_split", "0", "first run for all"),
    (BY_RING, "t / QUADS ^ threadIdx.x % CHUNKS", "t / QUADS", "chunks stored in another order"),
    (BY_RING, "if (accumulate) add_product(value, 1, *target);", "", "sums forgotten"),
    (BY_RING, "split * batch * out_features", "split * out_features", "parts overlap"),
    (BY_RING, "0", "1", "the first part is forgotten", "long long split = 0; split < splits"),
    (BY_RING, "GRID[k / COPIES][0]", "GRID[k % COPIES][0]", "knots"),
    (
        BY_RING,
        "static_cast<long long>(gridDim.x) * THREADS",
        "static_cast<long long>(gridDim.x) + THREADS",
        "stride of the blocks",
    ),
    (PACK, "task * SLOTS * OUTPUTS", "task / 2 * SLOTS * OUTPUTS", "tiles"),
    (PACK, "sample < batch", "sample <= batch", "a sample too many"),
    (PACK, "(first_pair + n) * stride", "n * stride", "first pairs only"),
    (SORT, "i % 2 * EVEN_ROWS", "(i + 1) % 2 * EVEN_ROWS", "halves exchanged"),
    (SORT, "(1u << lane) - 1u", "(2u << lane) - 1u", "counts oneself"),
    (
        SORT,
        "if (active && before == 0) counts[warp].add(digit, __popc(equals));",
        "",
        "not advanced",
    ),
    (SORT, "sum - value", "sum", "counts itself"),
    (
        SORT,
        "static_cast<unsigned>(number) << digit % 2 * 16",
        "static_cast<unsigned>(number)",
        "counts of two digits",
    ),
    (SORT, "sample_at = written;", "", "the last pass is lost"),
    (SORT, "keys[sample] / unit % DIGITS", "keys[sample] % DIGITS", "first digit twice"),
    (
        SORT,
        "return Point{both.at[0], both.at[1]};",
        "return Point{both.at[1], both.at[0]};",
        "i and j exchanged",
    ),
    (SORT, "if (!is_even(key) && place == 0) evens[pair] = 0;", "", "no evens"),
    (STRETCH, "half == 1 ? evens : 0", "0", "odd half begins at 0"),
    (STRETCH, "half == 0 ? evens : count", "count", "even half ends behind"),
    (
        STRETCH,
        "prepared.mixed_factor = stencil.mixed;",
        "prepared.mixed_factor = {};",
        "factors along",
    ),
    (
        STRETCH,
        "prepared.layer_factor = mixed_factors(record.fraction);",
        "prepared.layer_factor = record.fraction;",
        "factors of the layer",
    ),
    (STRETCH, "lane_index() / GROUP * GROUP", "0", "half the parts"),
    (STRETCH, "samples - 1", "GROUP - 1", "parts nobody wrote"),
    (
        SUMS,
        "rows[corner_offset(corner, out_features)] += row[corner];",
        "rows[corner_offset(corner, out_features)] = row[corner];",
        "merger overwrites",
    ),
    (SUMS, "neighbours ? row[corner + 1] : 0", "0", "merger: column not carried"),
    (SUMS, "low_sum[k] += row[column][k];", "low_sum[k] = row[column][k];", "overwrites"),
    (SUMS, "row[n][k] = row[n + 1][k];", "row[n][k] = 0;", "column not carried"),
    (DIFFERENCES, "left[k] = right[k];", "", "difference kept"),
    (DIFFERENCES, "row_2[k] - row_0[k]", "row_2[k] - row_1[k]", "wrong difference"),
    (BACKWARD, "part * WARPS", "part", "stretches overlap"),
    (BACKWARD, "lane > 0 ? cell_before : cell", "cell_before", "batch's first cell"),
    (BACKWARD, "begin + IN_FLIGHT + lane", "begin + lane", "rows of grad_y"),
    (BACKWARD, "entered & 1u << k", "entered & 1u", "cell of the second"),
    (BACKWARD, "(tile * pairs + pair) * chunk", "pair * chunk", "tiles of slopes"),
    (BACKWARD, POISON, "0", "not finite: second coordinate only"),
    (BACKWARD, "poison += 0 * own.fraction.at[axis];", "", "not finite: first coordinate only"),
    (BACKWARD, "merger.row[n] += left.last[n][o];", "merger.row[n] = left.last[n][o];", "a warp"),
    (
        BACKWARD,
        "(half * pairs + work.pair) * parts + work.part",
        "(half * pairs + work.pair) * parts",
        "one slot for all",
    ),
    (BACKWARD, "half * pairs + work.pair", "work.pair", "slots of one half"),
    (BACKWARD, "n >= parts", "0", "slots: even half twice"),
    (BACKWARD, "records.cell(range.end - 1)", "records.cell(range.begin)", "slots: cell"),
    (BACKWARD, "merger.enter(-1, out_features);", "", "slots: last cell lost"),
    (BACKWARD, "sum.at[axis] += part.at[axis];", "sum.at[0] += part.at[axis];", "slopes: axes"),
    (STENCIL, "-h.along", "h.along", "one variable: sign of a slope"),
    (STENCIL, "h.lower", "h.upper", "one variable: weight of the other", "{{h.lower"),
    (DIFFERENCES, "return {{dot(g, across)}};", "return {};", "one variable: no slope"),
    (PENALTY, "squares += f_xx * f_xx;", "", "one variable: no squares"),
    (PENALTY, "grad_1.at[n] -= (forward + backward) * f_xx;", "", "one variable: middle"),
    (
        PENALTY,
        "2 * (at_left.mixed.at[n] - at_right.mixed.at[n])",
        "at_left.mixed.at[n] - at_right.mixed.at[n]",
        "gradient of the mixed term",
    ),
    (PENALTY, "2 * f_xy * f_xy", "f_xy * f_xy", "mixed term once"),
    (PENALTY, "i % 2", "0", "one row in shared memory", "shared[i % 2]"),
    (PENALTY, "across_2.at[n] = across.at[n];", "across_2.at[n] = beside;", "rows"),
    (PENALTY, "factors_at(j + 1).backward", "factors_at(j + 1).forward", "right"),
    (PENALTY, "2 * scale / INNER", "2.0 / INNER", "unscaled gradient"),
    (PENALTY, "if (accumulate) result = target;", "", "overwrites"),
    (NETWORK, "value > bound", "!(value <= bound)", "a NaN is cut"),
    (NETWORK, "value < -bound ? -bound : value", "value", "no lower bound"),
    (CHAIN, "first_term * Terms::ROWS", "0 * Terms::ROWS", "first stage again"),
    (CHAIN, "layer.resident + done", "layer.resident", "tiles in one place"),
    (NETWORK, "Pairs::chunk_of_lane(t, N)", "t", "lanes' order", ADDED_CHUNK),
    (NETWORK, "Pairs::chunk_of_lane(t, N)", "t", "lanes' order, gradient", DOTTED_CHUNK),
    (
        NETWORK,
        "dots_of<t + COUNT / 2, COUNT / 2>(g, row)",
        "dots_of<t, COUNT / 2>(g, row)",
        "half of the chunks twice",
    ),
    (NETWORK, "to_real(value[3].at[k]) - row_1", "to_real(value[3].at[k]) - row_0", "wrong corner"),
    (NETWORK, "dots.left + at.v * mixed", "dots.left + at.u * mixed", "u for v"),
    (NETWORK, "GRID[at.j][1] * slope_2", "GRID[at.i][1] * slope_2", "width of the other"),
    (NETWORK, "0 * at.u + 0 * at.v", "0 * at.u", "not finite: first coordinate only"),
    (NETWORK, "0 * at.u + 0 * at.v", "0 * at.v", "not finite: second coordinate only"),
    (NETWORK, "feature < -bound", "false", "no lower bound of a gradient"),
    (NETWORK, "feature > bound", "!(feature <= bound)", "the gradient of a NaN is cut"),
    (NETWORK, "slope_2 += sums[THREADS];", "", "the last tile alone"),
    (NETWORK, "layer.target + layer.out_features + 2 * pair", "layer.source + 2 * pair", "early"),
    (NETWORK, "memory.to_copy = !resident;", "memory.to_copy = false;", "old stages"),
    (NETWORK, "turn.is_first ? REAL(0) : *own", "REAL(0)", "the last tile alone, linear"),
    (CHAIN, "layer.in_features", "layer.out_features", "weights transposed", OF_WEIGHTS),
    (NETWORK, "scale != nullptr ? scale[k] : REAL(1)", "REAL(1)", "gradient not scaled"),
    (NETWORK, "source == 0 ? rows - outputs : 0", "0", "over its inputs"),
    (NETWORK, "begin += decltype(kind)::size(layer);", "", "layers in one place"),
    (NETWORK, "value -= shift[k];", "", "not shifted", "if (shift != nullptr) value -= shift[k];"),
    (NETWORK, "value *= scale[k];", "", "not scaled", "if (scale != nullptr) value *= scale[k];"),
]

BANKS = "which of two rows comes first only decides about banks of shared memory"
NOTHING_LEFT = "a run that begins behind the end is empty"
SECOND_CALL = "the next sum over a block comes many barriers later"
OF_BLOCK = "of_warp[warp];\n    __syncthreads();"
FIRST_DIGIT = "static_cast<int>(threadIdx.x) * DIGITS_OF_THREAD"
REGISTERS = "for the compiler alone, see cuda/README.md"

#: Mutants from the text that change no result, each with the reason.
HARMLESS = [
    (CELL, "__syncwarp();", "", REGISTERS),
    (BY_RING, "__syncwarp();", "", REGISTERS),
    (RING, "__syncwarp();", "", REGISTERS, "__syncwarp();\n#else"),
    (RING, "show_barriers();", "", "a fence, and the emulator asks for none"),
    (TILE, "((cell ^ lane >> 2) & 1)", "true", BANKS),
    (TILE, "(i ^ lane >> 2) & 1", "true", BANKS),
    (TILE, "(j ^ lane >> 1) & 1", "true", BANKS),
    (PENALTY, "__syncthreads();", "", SECOND_CALL, OF_BLOCK),
    (SORT, "__syncthreads();", "", SECOND_CALL, OF_BLOCK),
    (FORWARD, "min(part * run, pairs)", "part * run", NOTHING_LEFT),
    (SORT, "min(warp * run, size)", "warp * run", NOTHING_LEFT),
    (SORT, f"min({FIRST_DIGIT}, DIGITS)", FIRST_DIGIT, NOTHING_LEFT),
    (SORT, "active", "true", "such lanes are the last of a warp", "active ? digit_of(sample)"),
    (CHAIN, "memory.to_copy", "true", "what is copied again is the same"),
    (SUMS, "cell >= 0", "true", "for no cell all sums are 0", "neighbours = cell >= 0"),
    (BACKWARD, "slot.cell < 0", "false", "sums for no cell are dropped at the next one"),
]


def from_the_text() -> list[Mutant]:
    """All that are not harmless; each of these has to be among them."""
    found = {each[:4]: each for file in SOURCES for each in all_of(SOURCES, file)}
    for each in HARMLESS:
        harmless = changed(SOURCES, *each)
        if found.pop(harmless[:4], None) is None:
            raise ValueError(f"{harmless.place(SOURCES)}: {harmless} does not follow from the text")
    return list(found.values())


MUTANTS = [changed(SOURCES, *each) for each in THOUGHT_OUT] + from_the_text()


@cache
def with_headers(*names: str) -> frozenset[str]:
    """The names of these files and of all that they include."""
    included = (name for each in names for name in re.findall('#include "(.+)"', SOURCES[each]))
    return frozenset(names).union(*map(with_headers, included))
