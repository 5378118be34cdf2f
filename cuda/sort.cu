// For every pair, the samples of a chunk in the order of their cells, those of a cell in their own
// order: a stable radix sort, least significant digit first.
//
// The order of the cells (i, j): even i before odd i, then by i, then by j. Cells of even i share no
// node row, nor do those of odd i, so that backward.cu can treat each half in one launch.
//
//     order[p, n]   the n-th sample of the chunk for pair p
//     evens[p]      how many of them have an even i
//
// Block    one pair at a time.
// Warp     a run of neighbouring places, 32 at a time; has its own counts of digits, so that the
//          place of a sample follows from the counts of lower digits, of earlier warps, and of
//          earlier samples of its own.
// Reads    x, twice per digit: locating a sample again costs less than keeping its cell.
// Writes   order, and spare [P, chunk] between two digits.
// Order    integers only; no place depends on which thread comes first.
#include "position.cuh"

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int THREADS = WARPS * LANES;
constexpr int DIGIT_BITS = 8;
constexpr int DIGITS = 1 << DIGIT_BITS;

__device__ constexpr int digits_of(long long largest) {
    return largest < DIGITS ? 1 : 1 + digits_of(largest >> DIGIT_BITS);
}
constexpr int PASSES = digits_of(static_cast<long long>(NUM_GRIDS) * NUM_GRIDS - 1);

struct Key {
    bool even;
    int value;
};

__device__ __forceinline__ Key key_of(const REAL* sample, long long pair, long long in_features) {
    const Point point = point_of(sample, pair, in_features);
    const int i = interval_of(point.x1), j = interval_of(point.x2);
    const int rank = i / 2 + i % 2 * ((NUM_GRIDS + 1) / 2);
    return {i % 2 == 0, rank * NUM_GRIDS + j};
}

// Counts [warp][digit] become the places where each warp puts its first sample of each digit.
__device__ __forceinline__ void counts_to_places(int (*counts)[DIGITS], int* totals) {
    const int digit = threadIdx.x;
    if (digit < DIGITS) {
        int total = 0;
        for (int warp = 0; warp < WARPS; ++warp) total += counts[warp][digit];
        totals[digit] = total;
    }
    __syncthreads();
    for (int offset = 1; offset < DIGITS; offset *= 2) {
        int sum = 0;
        if (digit < DIGITS) sum = totals[digit] + (digit >= offset ? totals[digit - offset] : 0);
        __syncthreads();
        if (digit < DIGITS) totals[digit] = sum;
        __syncthreads();
    }
    if (digit < DIGITS) {
        int place = digit > 0 ? totals[digit - 1] : 0;
        for (int warp = 0; warp < WARPS; ++warp) {
            const int count = counts[warp][digit];
            counts[warp][digit] = place;
            place += count;
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
sort_by_cell(const REAL* __restrict__ x, int* order, int* spare, int* __restrict__ evens,
             long long first_sample, long long count, long long chunk, long long in_features) {
    static_assert(THREADS >= DIGITS, "a thread per digit");
    __shared__ int counts[WARPS][DIGITS];
    __shared__ int totals[DIGITS];
    __shared__ int even_samples;
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int size = static_cast<int>(count);
    const int run = (size + THREADS - 1) / THREADS * LANES;
    const int begin = min(warp * run, size), end = min(begin + run, size);
    const REAL* chunk_x = x + first_sample * in_features;

    for (long long pair = blockIdx.x; pair < (in_features + 1) / 2; pair += gridDim.x) {
        if (threadIdx.x == 0) even_samples = 0;
        for (int pass = 0; pass < PASSES; ++pass) {
            int* target = ((PASSES - pass) % 2 ? order : spare) + pair * chunk;
            const int* source = ((PASSES - pass) % 2 ? spare : order) + pair * chunk;
            const auto sample_of = [&](int place) { return pass == 0 ? place : source[place]; };
            const auto key_at = [&](int sample) {
                return key_of(chunk_x + sample * in_features, pair, in_features);
            };
            const auto digit_of = [&](Key key) {
                return key.value >> pass * DIGIT_BITS & (DIGITS - 1);
            };

            for (int k = threadIdx.x; k < WARPS * DIGITS; k += THREADS) {
                counts[k / DIGITS][k % DIGITS] = 0;
            }
            __syncthreads();
            for (int place = begin + lane; place < end; place += LANES) {
                const Key key = key_at(sample_of(place));
                atomicAdd(&counts[warp][digit_of(key)], 1);
                if (pass == 0 && key.even) atomicAdd(&even_samples, 1);
            }
            __syncthreads();
            counts_to_places(counts, totals);

            for (int first = begin; first < end; first += LANES) {
                const bool active = first + lane < end;
                const int sample = active ? sample_of(first + lane) : 0;
                const int digit = active ? digit_of(key_at(sample)) : DIGITS;
                const unsigned equals = __match_any_sync(ALL_LANES, digit);
                const int before = __popc(equals & ((1u << lane) - 1u));
                if (active) target[counts[warp][digit] + before] = sample;
                __syncwarp();
                if (active && before == 0) counts[warp][digit] += __popc(equals);
                __syncwarp();
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) evens[pair] = even_samples;
        __syncthreads();
    }
}
