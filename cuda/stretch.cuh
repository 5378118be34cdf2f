// A stretch of the sorted samples of a pair, and what a warp keeps of it in shared memory.
#include "record.cuh"
#include "stencil.cuh"
#include "warp.cuh"

constexpr int IN_FLIGHT = 4;  // rows of grad_y on their way while one is worked on
constexpr int GROUP = LANES / 2;  // samples whose slopes are summed over the lanes at a time
constexpr int PITCH = LANES + 16 / sizeof(Real2);  // reads of neighbouring rows hit different banks

// The sorted samples of a pair from begin to end: one of `number` equal parts of a half.
struct Range {
    int begin, end;

    __device__ __forceinline__ Range(int index, int number, int half, int evens, int count) {
        const int first = half == 1 ? evens : 0;
        const int size = (half == 0 ? evens : count) - first;
        begin = first + index * size / number;
        end = first + (index + 1) * size / number;
    }
};

// What all lanes need of a sample, prepared by one of them.
struct alignas(16) Prepared {
    REAL weight[CORNERS];
    Real2 mixed_factor;        // of R - L in the two brackets: v, u, or with DIRECTION b, a
    long long bytes_to_fetch;  // where grad_y of the sample IN_FLIGHT places later begins
    int cell;
#if DIRECTION && LAYER
    Real2 layer_factor;  // v, u
#endif
};

// `real` is false for a sample beyond the end of a stretch: its weights are 0.
__device__ __forceinline__ void prepare(Prepared& prepared, Record record, bool real,
                                        const REAL* direction, long long pair,
                                        long long in_features) {
    const REAL u = record.fraction.first, v = record.fraction.second;
    const Stencil stencil = stencil_in(record.cell / NUM_KNOTS, record.cell % NUM_KNOTS, u, v,
                                       direction, pair, in_features);
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) {
        prepared.weight[corner] = real ? stencil.weights.corner[corner] : 0;
    }
    prepared.cell = record.cell;
    prepared.mixed_factor = {stencil.mixed[0], stencil.mixed[1]};
#if DIRECTION && LAYER
    prepared.layer_factor = {v, u};
#endif
}

// Each lane's part of the slopes of GROUP samples.
struct alignas(16) Parts {
    Real2 of[GROUP][PITCH];

    // Sums the parts of each of `samples` samples: lanes l and GROUP + l return that of sample l.
    __device__ __forceinline__ Real2 total(int samples) const {
        struct alignas(16) Several {
            Real2 at[16 / sizeof(Real2)];
        };
        const Real2* half =
            of[min(lane_index() % GROUP, samples - 1)] + lane_index() / GROUP * GROUP;
        Real2 sum = {0, 0};
#pragma unroll 2
        for (int k = 0; k < GROUP; k += 16 / sizeof(Real2)) {
            const Several several = *reinterpret_cast<const Several*>(half + k);
#pragma unroll
            for (const Real2& part : several.at) {
                sum.first += part.first;
                sum.second += part.second;
            }
        }
        sum.first += __shfl_xor_sync(ALL_LANES, sum.first, GROUP);
        sum.second += __shfl_xor_sync(ALL_LANES, sum.second, GROUP);
        return sum;
    }
};

// A warp's stretch, the samples that it works on, and at the end the sums of its last cell. All
// this lies in shared memory, because registers limit the number of warps.
struct Work {
    int pair, tile, part, end;
    int last_cell;  // -1 for a stretch without samples
    Record record[LANES];
    Prepared prepared[LANES];
    union {
        Parts parts;
        REAL last[CORNERS][TILE];
    };
};
