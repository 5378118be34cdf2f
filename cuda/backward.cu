// The vector-Jacobian product of the layer, or with DIRECTION of its derivative along X [B, I]:
//
//     dT[p, n, o]  += sum over b of  w_n(b, p) g[b, o]                        (TABLES_GRADIENT)
//     dx[b, 2p]     = 1/h_i sum over o of g[b, o] (L + v (R - L))             (X_GRADIENT)
//     dx[b, 2p + 1] = 1/h_j sum over o of g[b, o] (A + u (R - L))
//
// with the differences of a cell's rows L = T[i+1,j] - T[i,j], R = T[i+1,j+1] - T[i,j+1] and
// A = T[i,j+1] - T[i,j]. With DIRECTION (a, b) = (X1/h_i, X2/h_j) the brackets are b (R - L) and
// a (R - L). With both DIRECTION and LAYER, the double backward, they are the sum of these, of
// `direction_tables`, and of those above, of `layer_tables`. For functions of one variable,
//
//     dx[b, p] = 1/h sum over o of g[b, o] A        with A = T[i+1] - T[i]
//
// which along a direction is 0. Their cells are walked as one row of cells j of even i.
//
// A warp walks a stretch of the samples of a chunk, sorted by cell, for a tile of outputs:
// differences and sums of a cell stay in registers while its samples pass by, and from (i, j) to
// (i, j+1) so does what the two cells share. Neighbouring stretches are walked by the warps of a
// block. No two blocks of a launch add to the same table row:
//   - A warp adds up all its cells but the last, whose sums it leaves in shared memory. A cell
//     before the last adds to node columns left of the last one's, as the column between two
//     neighbours is carried over; and the stretches that follow begin with the last one's cell or
//     to its right.
//   - In the same way the block goes through what its warps have left, cell by cell, and leaves the
//     sums of the last cell in a slot; backward_slots, a launch of its own, goes through the slots.
//   - Cells (i, j) and (i+1, j) share rows, too: a launch takes only cells of even i, or of odd i.
// So a row is read, added to and written without atomics, and always in the same order.
//
//     half 0, 1, 2      the samples in cells of even i; of odd i; all (where dT is not needed); of
//                       one variable there is no half 1, and half 0 has all, too
//     parts             blocks of a half, a pair and a tile: each has WARPS stretches
//     slots             [HALVES, P, parts, CORNERS, O]: sums of the last cell of a part
//     slopes            [tiles, P, chunk, d]: each tile's part of dx; with a single tile dx itself
#include "cell_sums.cuh"
#include "differences.cuh"
#include "stretch.cuh"

// Block    one tile of outputs, one pair, one part of a half.
// Warp     one stretch.
// Lane     prepares every 32nd sample for the whole warp and stores its slopes; owns LANE_OUTPUTS
//          outputs.
// Reads    sorted_samples, fractions, X: once per tile. grad_y: once. tables: the rows
//          of a cell, once per stretch.
// Writes   slopes; grad_tables and slots as said above.
// Order    the sums of a cell run over its samples ascending, after what its left neighbour left,
//          then over stretches ascending; a slope is summed within a lane, then over lanes of each
//          half of the warp ascending, then over halves, then over tiles ascending. So it does not
//          depend on other samples.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
backward(const REAL* __restrict__ grad_y, const REAL* __restrict__ direction,
         const TABLE* __restrict__ direction_tables, const LAYER_TABLE* __restrict__ layer_tables,
         const int* __restrict__ sorted_samples, const REAL* __restrict__ fractions,
         const int* __restrict__ evens, REAL* __restrict__ slopes, REAL* __restrict__ grad_tables,
         REAL* __restrict__ slots, long long first_sample, long long count, long long chunk,
         long long parts, long long half, long long in_features, long long out_features) {
    __shared__ Work work_of_warp[WARPS];
    Work& work = work_of_warp[threadIdx.x / LANES];
    const int lane = lane_index();
    const long long pairs = pairs_of(in_features);
    const long long tiles = (out_features + TILE - 1) / TILE;

    for (long long number = blockIdx.x; number < tiles * pairs * parts; number += gridDim.x) {
        const int part = static_cast<int>(number % parts);
        const int pair = static_cast<int>(number / parts % pairs);
        const int tile = static_cast<int>(number / parts / pairs);
        const Range stretch(part * WARPS + static_cast<int>(threadIdx.x) / LANES,
                            static_cast<int>(parts) * WARPS, static_cast<int>(half), evens[pair],
                            static_cast<int>(count));
        __syncwarp();  // all lanes have left the last task
        if (lane == 0) {
            work.pair = pair;
            work.tile = tile;
            work.part = part;
            work.end = stretch.end;
        }
        __syncwarp();

        const Share share(static_cast<long long>(tile) * TILE, out_features);
        const char* own_grad_y =
            reinterpret_cast<const char*>(grad_y + first_sample * out_features + share.begin);
        const long long row_bytes = out_features * static_cast<int>(sizeof(REAL));
        const long long own_table = pair * (NUM_NODES * out_features) + share.begin;
        const Records records = {sorted_samples, fractions};
        const auto record_index = [&](int place) {
            return work.pair * chunk + max(min(place, work.end - 1), 0);
        };

        REAL g[IN_FLIGHT][LANE_OUTPUTS] = {};
#pragma unroll
        for (int n = 0; n < IN_FLIGHT; ++n) {
            const long long sample = records.sample(record_index(stretch.begin + n));
            share.read(reinterpret_cast<const REAL*>(own_grad_y + sample * row_bytes), g[n]);
        }

        CellSums sums = {};
        Differences differences = {};
        MixedDifference mixed_difference = {};
        int cell = -1;
        const auto enter = [&](int next_cell) {
            const bool next_to_it = cell >= 0 && next_cell == cell + 1;
            if (TABLES_GRADIENT && cell >= 0) {
                REAL* rows = grad_tables + own_table + cell * out_features;
                sums.add_column_to(rows, 0, share, out_features);
                if (!next_to_it) {
                    sums.add_column_to(rows, 1, share, out_features);
                    sums.clear(1);
                }
                sums.shift();
            }
            cell = next_cell;
            const long long rows = own_table + cell * out_features;
            if (X_GRADIENT && LAYER) {
                differences.load(layer_tables + rows, next_to_it, share, out_features);
            }
            if (X_GRADIENT && DIRECTION) {
                mixed_difference.load(direction_tables + rows, share, out_features);
            }
        };

        // One sample: `value` is its row of grad_y and becomes that of the sample IN_FLIGHT later.
        const auto pass = [&](const Prepared& at, REAL(&value)[LANE_OUTPUTS], PerAxis& part) {
            if (TABLES_GRADIENT) {
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner) {
                    const REAL weight = at.weight[corner];
#pragma unroll
                    for (int k = 0; k < LANE_OUTPUTS; ++k) sums.row[corner][k] += weight * value[k];
                }
            }
            if (X_GRADIENT) {
                PerAxis slopes = {};
#if LAYER && DIRECTION
                slopes = differences.slopes(value, at.layer_factor);
#elif LAYER
                slopes = differences.slopes(value, at.mixed_factor);
#endif
                if (DIRECTION) mixed_difference.add_slopes(value, at.mixed_factor, slopes);
                part = slopes;
            }
            share.read(reinterpret_cast<const REAL*>(own_grad_y + at.bytes_to_fetch), value);
        };

        for (int begin = stretch.begin; begin < work.end; begin += LANES) {
            const int batch = min(work.end - begin, LANES);
            const Record own = records.read(record_index(begin + lane));
            const int to_fetch = records.sample(record_index(begin + IN_FLIGHT + lane));
            const int cell_before = __shfl_up_sync(ALL_LANES, own.cell, 1);
            unsigned entered =
                __ballot_sync(ALL_LANES, own.cell != (lane > 0 ? cell_before : cell));
            prepare(work.prepared[lane], own, lane < batch,
                    DIRECTION ? direction + (first_sample + own.sample) * in_features : nullptr,
                    work.pair, in_features);
            work.prepared[lane].bytes_to_fetch = to_fetch * row_bytes;
            work.record[lane] = own;
            __syncwarp();

            for (int group = 0; group < batch; group += GROUP) {
                const int samples = min(batch - group, GROUP);
                for (int n = 0; n < samples; n += IN_FLIGHT, entered >>= IN_FLIGHT) {
#pragma unroll
                    for (int k = 0; k < IN_FLIGHT; ++k) {
                        if (entered & 1u << k) enter(work.prepared[group + n + k].cell);
                        pass(work.prepared[group + n + k], g[k], work.parts.of[n + k][lane]);
                    }
                }
                if (X_GRADIENT) {
                    __syncwarp();
                    const PerAxis total = work.parts.total(samples);
                    if (lane < samples) work.prepared[group + lane].mixed_factor = total;
                    __syncwarp();
                }
            }

            if (X_GRADIENT && begin + lane < work.end) {
                const long long pair = work.pair, tile = work.tile;
                const Record own = work.record[lane];
                const PerAxis slope = work.prepared[lane].mixed_factor;  // overwritten above
                const Intervals intervals = intervals_of_cell(own.cell);
                REAL poison = 0 * own.fraction.at[0];  // NaN where a coordinate is not finite
#pragma unroll
                for (int axis = 1; axis < DIMENSION; ++axis) poison += 0 * own.fraction.at[axis];
                PerAxis scaled;
#pragma unroll
                for (int axis = 0; axis < DIMENSION; ++axis) {
                    scaled.at[axis] = GRID[intervals.at[axis]][1] * slope.at[axis] + poison;
                }
                if (SEVERAL_TILES) {
                    reinterpret_cast<PerAxis*>(slopes)[(tile * pairs + pair) * chunk + own.sample] =
                        scaled;
                } else {
                    const long long first = DIMENSION * pair;
                    REAL* target = slopes + (first_sample + own.sample) * in_features + first;
                    target[0] = scaled.at[0];
#pragma unroll
                    for (int axis = 1; axis < DIMENSION; ++axis) {
                        if (first + axis < in_features) target[axis] = scaled.at[axis];
                    }
                }
            }
            __syncwarp();  // the next batch overwrites this one
        }

        if (TABLES_GRADIENT) {
            if (lane == 0) work.last_cell = cell;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                share.write(work.last[corner] + lane * VECTOR, sums.row[corner]);
            }
            __syncthreads();
            const long long first = static_cast<long long>(work.tile) * TILE;
            const long long outputs = min(out_features - first, static_cast<long long>(TILE));
            const long long slot = (half * pairs + work.pair) * parts + work.part;
            for (int o = threadIdx.x; o < outputs; o += WARPS * LANES) {
                Merger merger = {grad_tables + first + o +
                                 work.pair * (NUM_NODES * out_features)};
#pragma unroll 1  // unrolled, it takes registers that the walk needs
                for (const Work& left : work_of_warp) {
                    if (left.last_cell < 0) continue;
                    merger.enter(left.last_cell, out_features);
                    for (int n = 0; n < CORNERS; ++n) merger.row[n] += left.last[n][o];
                }
                for (int n = 0; n < CORNERS; ++n) {
                    slots[(slot * CORNERS + n) * out_features + first + o] = merger.row[n];
                }
            }
            __syncthreads();
        }
    }
}

// Adds the slots to the tables' gradient.
//
// Thread   one pair and one output.
// Order    even rows of cells before odd ones, in each half parts ascending.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
backward_slots(const int* __restrict__ sorted_samples, const int* __restrict__ evens,
               REAL* grad_tables, const REAL* __restrict__ slots, long long count, long long chunk,
               long long parts, long long in_features, long long out_features) {
    constexpr int THREADS = WARPS * LANES;
    const long long pairs = pairs_of(in_features);
    const long long groups = (out_features + THREADS - 1) / THREADS;

    for (long long task = blockIdx.x; task < pairs * groups; task += gridDim.x) {
        const long long pair = task / groups;
        const long long o = task % groups * THREADS + threadIdx.x;
        if (o >= out_features) continue;
        const Records records = {sorted_samples + 2 * pair * chunk, nullptr};
        Merger merger = {grad_tables + pair * (NUM_NODES * out_features) + o};
        struct Slot {
            int cell = -1;  // none
            REAL row[CORNERS];
        };
        const auto slot_at = [&](int n) {
            Slot slot;
            if (n == HALVES * parts) return slot;
            const int half = n >= parts, part = n - half * static_cast<int>(parts);
            const Range range(part, static_cast<int>(parts), half, evens[pair],
                              static_cast<int>(count));
            if (range.begin == range.end) return slot;
            slot.cell = records.cell(range.end - 1);
            const long long row = ((half * pairs + pair) * parts + part) * CORNERS;
            for (int k = 0; k < CORNERS; ++k) slot.row[k] = slots[(row + k) * out_features + o];
            return slot;
        };
        Slot next = slot_at(0);
        for (int n = 0; n < HALVES * parts; ++n) {
            const Slot slot = next;
            next = slot_at(n + 1);  // on its way while this one is added
            if (slot.cell < 0) continue;
            merger.enter(slot.cell, out_features);
            for (int k = 0; k < CORNERS; ++k) merger.row[k] += slot.row[k];
        }
        merger.enter(-1, out_features);
    }
}

// Adds up the tiles' parts of dx, where there are several, and writes dx.
//
// Block    32 samples and 32 features at a time, through shared memory, so that neighbouring lanes have
//          neighbouring samples of a pair when they read, neighbouring features when they write.
// Order    tiles ascending.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
backward_slopes(const REAL* __restrict__ slopes, REAL* __restrict__ grad_x,
                long long first_sample, long long count, long long chunk, long long in_features,
                long long out_features) {
    constexpr int SOME_PAIRS = LANES / DIMENSION;
    __shared__ REAL of_feature[LANES][LANES + 1];
    const long long pairs = pairs_of(in_features);
    const long long tiles = (out_features + TILE - 1) / TILE;
    const long long pair_groups = (pairs + SOME_PAIRS - 1) / SOME_PAIRS;
    const long long tasks = (count + LANES - 1) / LANES * pair_groups;
    const PerAxis* parts = reinterpret_cast<const PerAxis*>(slopes);
    const int lane = lane_index(), warp = threadIdx.x / LANES;

    for (long long task = blockIdx.x; task < tasks; task += gridDim.x) {
        const long long first_pair = task % pair_groups * SOME_PAIRS;
        const long long begin = task / pair_groups * LANES;
        for (int n = warp; n < SOME_PAIRS; n += WARPS) {
            if (first_pair + n < pairs && begin + lane < count) {
                PerAxis sum = {};
                for (long long tile = 0; tile < tiles; ++tile) {
                    const PerAxis part =
                        parts[(tile * pairs + first_pair + n) * chunk + begin + lane];
#pragma unroll
                    for (int axis = 0; axis < DIMENSION; ++axis) sum.at[axis] += part.at[axis];
                }
#pragma unroll
                for (int axis = 0; axis < DIMENSION; ++axis) {
                    of_feature[DIMENSION * n + axis][lane] = sum.at[axis];
                }
            }
        }
        __syncthreads();
        const long long feature = DIMENSION * first_pair + lane;
        for (int n = warp; n < LANES; n += WARPS) {
            if (begin + n < count && feature < in_features) {
                grad_x[(first_sample + begin + n) * in_features + feature] = of_feature[lane][n];
            }
        }
        __syncthreads();
    }
}
