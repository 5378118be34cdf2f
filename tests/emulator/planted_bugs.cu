// One bug in each kernel. The line that ends in "caught: KIND" is the one that the emulator must
// name, with that kind of fault.
#include <cuda_fp16.h>

// ---- races within a block ----------------------------------------------------------------------

extern "C" __global__ void read_without_barrier(const float* x, float* y) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x ^ 1];  // caught: race
}

extern "C" __global__ void overwrite_without_barrier(const float* x, float* y, int tiles) {
    __shared__ float tile[256];
    float sum = 0.0f;
    for (int k = 0; k < tiles; ++k) {
        tile[threadIdx.x] = x[k * 256 + threadIdx.x];  // caught: race
        __syncthreads();
        sum += tile[255 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void no_syncwarp(float* y) {  // warps no longer run in lockstep
    __shared__ float values[48];
    const int lane = threadIdx.x;
    values[lane] = lane;
    if (lane < 16) values[lane + 32] = 0.0f;
    __syncwarp();
    values[lane] += values[lane + 16];  // caught: race
    __syncwarp();
    y[lane] = values[lane];
}

extern "C" __global__ void shuffle_orders_no_memory(float* y) {
    __shared__ float values[32];
    values[threadIdx.x] = 1.0f;
    __shfl_sync(0xffffffffu, 0, 0);
    y[threadIdx.x] = values[threadIdx.x ^ 1];  // caught: race
}

extern "C" __global__ void syncwarp_between_warps(float* y) {
    __shared__ float values[64];
    values[threadIdx.x] = 1.0f;
    __syncwarp();
    y[threadIdx.x] = values[threadIdx.x ^ 32];  // caught: race
}

extern "C" __global__ void ordered_with_one_of_two_warps(float* y) {
    __shared__ float value;
    if (threadIdx.x == 0) value = 1.0f;
    __syncthreads();
    y[threadIdx.x] = value;
    __syncwarp();
    if (threadIdx.x == 32) value = 2.0f;  // caught: race
}

extern "C" __global__ void plain_beside_atomic(int* y) {
    __shared__ int total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, 1);  // caught: race
    y[threadIdx.x] = total;
}

extern "C" __global__ void same_half_twice(float* y) {
    __shared__ __half values[32];
    values[threadIdx.x / 2] = __float2half_rn(1.0f);  // caught: race
    __syncthreads();
    y[threadIdx.x] = __half2float(values[threadIdx.x / 2]);
}

// ---- races between blocks ----------------------------------------------------------------------

extern "C" __global__ void blocks_add_to_one_array(const float* x, float* y) {
    y[threadIdx.x] += x[blockIdx.x * blockDim.x + threadIdx.x];  // caught: race
}

extern "C" __global__ void block_reads_its_neighbour(float* y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float next = y[(i + blockDim.x) % (gridDim.x * blockDim.x)];
    y[i] = next;  // caught: race
}

extern "C" __global__ void all_blocks_read_one_writes(float* y) {
    const float value = y[threadIdx.x];
    if (blockIdx.x == 1) y[threadIdx.x] = value + 1.0f;  // caught: race
}

// ---- bounds ------------------------------------------------------------------------------------

extern "C" __global__ void beyond_dynamic_shared(float* y, int n) {
    extern __shared__ float dynamic_values[];
    for (int i = threadIdx.x; i <= n; i += blockDim.x) {
        dynamic_values[i] = i;  // caught: out-of-bounds
    }
    __syncthreads();
    y[threadIdx.x] = dynamic_values[threadIdx.x];
}

__device__ __noinline__ void store_at(float* p, int k, float value) {
    p[k] = value;  // caught: out-of-bounds
}

extern "C" __global__ void beyond_static_shared(float* y, int k) {
    __shared__ float first[32];
    __shared__ float second[32];
    first[threadIdx.x] = 1.0f;
    second[threadIdx.x] = 2.0f;
    __syncthreads();
    if (threadIdx.x == 0) store_at(first, k, 5.0f);
    if (threadIdx.x == 0) store_at(second, k, 5.0f);
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

extern "C" __global__ void wrong_inner_index(float* y, int k) {  // still within the whole array
    __shared__ float table[8][33];
    table[threadIdx.x % 8][threadIdx.x / 8 + k] = 1.0f;  // caught: undefined-behaviour
    __syncthreads();
    y[threadIdx.x] = table[threadIdx.x % 8][threadIdx.x / 8];
}

extern "C" __global__ void no_tail_guard(float* y) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;  // caught: out-of-bounds
}

extern "C" __global__ void before_the_array(const float* x, float* y) {
    y[threadIdx.x] = x[(int)threadIdx.x - 1];  // caught: out-of-bounds
}

extern "C" __global__ void negative_as_unsigned(const float* x, float* y, int k) {
    y[threadIdx.x] = x[(unsigned)(threadIdx.x - k)];  // caught: out-of-bounds
}

extern "C" __global__ void into_another_threads_stack(float* y) {
    __shared__ float* pointer;
    float own[2] = {1.0f, 2.0f};
    if (threadIdx.x == 0) pointer = own;
    __syncthreads();
    y[threadIdx.x] = pointer[threadIdx.x % 2];  // caught: out-of-bounds
    __syncthreads();
}

extern "C" __global__ void writes_its_input(const float* x, float* y) {
    const_cast<float*>(x)[threadIdx.x] = 0.0f;  // caught: write-to-read-only
    y[threadIdx.x] = x[threadIdx.x];
}

// ---- unwritten shared memory -------------------------------------------------------------------

extern "C" __global__ void half_initialised(float* y) {
    __shared__ float values[64];
    if (threadIdx.x < 32) values[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x];  // caught: unwritten-shared-read
}

extern "C" __global__ void counts_from_garbage(int* y) {
    __shared__ int total;
    atomicAdd(&total, 1);  // caught: unwritten-shared-read
    __syncthreads();
    y[threadIdx.x] = total;
}

extern "C" __global__ void relies_on_earlier_block(float* y) {
    __shared__ float values[32];
    if (blockIdx.x == 0) values[threadIdx.x] = 1.0f;
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = values[threadIdx.x];  // caught: unwritten-shared-read
}

// ---- barriers and warp collectives -------------------------------------------------------------

extern "C" __global__ void barrier_in_branch(float* y) {
    if (threadIdx.x < 16) __syncthreads();  // caught: barrier-divergence
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void return_before_barrier(float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __shared__ float values[64];
    values[threadIdx.x] = i;
    __syncthreads();  // caught: barrier-divergence
    y[i] = values[threadIdx.x];
}

extern "C" __global__ void two_barriers(float* y) {
    if (threadIdx.x < 32) {
        __syncthreads();  // caught: barrier-divergence
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void barrier_against_shuffle(float* y) {
    float value = threadIdx.x;
    if (threadIdx.x == 5) __syncthreads();
    value = __shfl_xor_sync(0xffffffffu, value, 1);  // caught: barrier-divergence
    y[threadIdx.x] = value;
}

extern "C" __global__ void shuffle_in_branch(float* y) {
    float value = threadIdx.x;
    if (threadIdx.x & 1) {
        value = __shfl_xor_sync(0xffffffffu, value, 2);  // caught: warp-collective-misuse
    }
    y[threadIdx.x] = value;
}

extern "C" __global__ void shuffle_in_both_branches(float* y) {
    float value = threadIdx.x;
    if (threadIdx.x < 16) {
        value = __shfl_xor_sync(0xffffffffu, value, 16);  // caught: warp-collective-misuse
    } else {
        value = __shfl_xor_sync(0xffffffffu, value, 16);
    }
    y[threadIdx.x] = value;
}

extern "C" __global__ void caller_not_in_mask(float* y) {
    __syncwarp(0x0000ffffu);  // caught: warp-collective-misuse
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void shuffle_from_idle_lane(float* y) {
    float value = threadIdx.x;
    if (threadIdx.x < 16) {
        value = __shfl_down_sync(0x0000ffffu, value, 8);  // caught: warp-collective-misuse
    }
    y[threadIdx.x] = value;
}

// ---- undefined behaviour -----------------------------------------------------------------------

extern "C" __global__ void misaligned_vector(const float* x, float* y) {
    const float4 four = *reinterpret_cast<const float4*>(x + threadIdx.x);  // caught: misaligned
    y[threadIdx.x] = four.x + four.w;
}

extern "C" __global__ void index_overflow(const float* x, float* y, int stride) {
    const int i = (int)threadIdx.x * stride;  // caught: undefined-behaviour
    y[threadIdx.x] = x[i & 31];
}

extern "C" __global__ void division_by_zero(int* y, int n) {
    y[threadIdx.x] = 7 / n;  // caught: undefined-behaviour
}

extern "C" __global__ void cast_of_nan(const float* x, int* y) {
    y[threadIdx.x] = (int)x[threadIdx.x];  // caught: undefined-behaviour
}

extern "C" __global__ void null_pointer(const float* x, float* y) {
    y[threadIdx.x] = x[0];  // caught: undefined-behaviour
}

extern "C" __global__ void stack_overflow(float* y, int n) {  // caught: bad-address
    volatile char large[128 * 1024];
    for (int i = 0; i < n; ++i) large[i] = 1;
    y[threadIdx.x] = large[n - 1];
}

extern "C" __global__ void waits_for_a_later_thread(int* y) {
    volatile int* flag = y;
    while (threadIdx.x == 0 && *flag == 0) {  // caught: endless-loop
    }
    if (threadIdx.x == 1) *flag = 1;
}

// ---- asynchronous copies -----------------------------------------------------------------------

extern "C" __global__ void copy_without_wait(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);
    commit_copies();
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x];  // caught: async-copy
}

extern "C" __global__ void own_copy_without_wait(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);
    commit_copies();
    y[threadIdx.x] = values[4 * threadIdx.x];  // caught: async-copy
}

extern "C" __global__ void wait_after_barrier(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);
    commit_copies();
    __syncthreads();
    wait_for_copies<0>();
    y[threadIdx.x] = values[127 - threadIdx.x];  // caught: race
}

extern "C" __global__ void wait_for_too_few(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x];  // caught: async-copy
}

extern "C" __global__ void copy_over_what_is_read(const float* x, float* y, int tiles) {
    __shared__ __align__(16) float values[128];
    float sum = 0.0f;
    for (int k = 0; k < tiles; ++k) {
        copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);  // caught: race
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        sum += values[127 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void copy_forgotten(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x]);  // caught: async-copy
    commit_copies();
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void copy_to_odd_address(const float* x, float* y) {
    __shared__ __align__(16) float values[132];
    copy_16_bytes(&values[4 * threadIdx.x + 1], &x[4 * threadIdx.x]);  // caught: misaligned
    commit_copies();
    wait_for_copies<0>();
    y[threadIdx.x] = values[4 * threadIdx.x + 1];
}

extern "C" __global__ void copy_beyond_source(const float* x, float* y) {
    __shared__ __align__(16) float values[128];
    copy_16_bytes(&values[4 * threadIdx.x], &x[4 * threadIdx.x + 4]);  // caught: out-of-bounds
    commit_copies();
    wait_for_copies<0>();
    y[threadIdx.x] = values[4 * threadIdx.x];
}

extern "C" __global__ void copy_to_no_shared_memory(const float* x, float* y) {
    copy_16_bytes(&y[4 * threadIdx.x], &x[4 * threadIdx.x]);  // caught: out-of-bounds
    commit_copies();
    wait_for_copies<0>();
}

// ---- barriers in shared memory -----------------------------------------------------------------

__shared__ __align__(16) float stage[128];
__shared__ unsigned long long full, empty;

__device__ __forceinline__ void start_both(int full_arrivals, int empty_arrivals) {
    if (threadIdx.x == 0) {
        start(&full, full_arrivals);
        start(&empty, empty_arrivals);
    }
    __syncthreads();
}

__device__ __forceinline__ void fill(const float* x, int bytes) {
    arrive_expecting(&full, bytes);
    copy_bulk(stage, x, bytes, &full);
}

extern "C" __global__ void bulk_copy_without_wait(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) fill(x, 512);
    __syncthreads();
    y[threadIdx.x] = stage[threadIdx.x];  // caught: async-copy
    wait_for_phase(&full, 0);
}

extern "C" __global__ void wait_for_the_wrong_parity(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) fill(x, 512);
    wait_for_phase(&full, 1);
    y[threadIdx.x] = stage[threadIdx.x];  // caught: async-copy
    wait_for_phase(&full, 0);
}

extern "C" __global__ void another_lane_has_waited(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) fill(x, 512);
    if (threadIdx.x == 0) wait_for_phase(&full, 0);
    __shfl_sync(0xffffffffu, 0, 0);
    y[threadIdx.x] = stage[threadIdx.x];  // caught: race
}

extern "C" __global__ void refill_while_others_read(const float* x, float* y) {
    start_both(1, 1);
    for (int turn = 0; turn < 2; ++turn) {
        if (threadIdx.x == 0) copy_bulk(stage, x, 512, &full);  // caught: race
        if (threadIdx.x == 0) arrive_expecting(&full, 512);
        wait_for_phase(&full, turn);
        y[threadIdx.x] = stage[threadIdx.x];
        __syncwarp();
    }
}

extern "C" __global__ void leaves_before_it_has_read(const float* x, float* y) {
    start_both(1, 2);
    for (int turn = 0; turn < 2; ++turn) {
        if (threadIdx.x == 0) {
            wait_for_phase(&empty, turn ^ 1);
            arrive_expecting(&full, 512);
            copy_bulk(stage, x, 512, &full);  // caught: race
        }
        wait_for_phase(&full, turn);
        if (threadIdx.x % 32 == 0) arrive(&empty);
        y[threadIdx.x] = stage[threadIdx.x];
    }
}

extern "C" __global__ void leaves_for_its_warp_too_early(const float* x, float* y) {
    start_both(1, 2);
    for (int turn = 0; turn < 2; ++turn) {
        if (threadIdx.x == 0) {
            wait_for_phase(&empty, turn ^ 1);
            arrive_expecting(&full, 512);
            copy_bulk(stage, x, 512, &full);  // caught: race
        }
        wait_for_phase(&full, turn);
        y[threadIdx.x] = stage[threadIdx.x];
        if (threadIdx.x % 32 == 0) arrive(&empty);
    }
}

extern "C" __global__ void one_warp_does_not_leave(const float* x, float* y) {
    start_both(1, 2);
    for (int turn = 0; turn < 2; ++turn) {
        if (threadIdx.x == 0) {
            wait_for_phase(&empty, turn ^ 1);  // caught: barrier-divergence
            fill(x, 512);
        }
        wait_for_phase(&full, turn);
        y[threadIdx.x] = stage[threadIdx.x];
        __syncwarp();
        if (threadIdx.x == 0) arrive(&empty);
    }
}

extern "C" __global__ void more_bytes_than_expected(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) {
        arrive_expecting(&full, 256);
        copy_bulk(stage, x, 512, &full);
    }
    wait_for_phase(&full, 0);  // caught: mbarrier-misuse
    y[threadIdx.x] = stage[threadIdx.x];
}

extern "C" __global__ void fewer_bytes_than_expected(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) {
        arrive_expecting(&full, 512);
        copy_bulk(stage, x, 256, &full);
    }
    wait_for_phase(&full, 0);  // caught: barrier-divergence
    y[threadIdx.x] = stage[threadIdx.x % 64];
}

extern "C" __global__ void arrival_too_many(float* y) {
    start_both(1, 1);
    if (threadIdx.x < 2) arrive_expecting(&full, 16);  // caught: mbarrier-misuse
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void mbarrier_never_initialised(float* y) {
    arrive(&empty);  // caught: mbarrier-misuse
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void mbarrier_used_at_once(float* y) {
    if (threadIdx.x == 0) start(&empty, 32);
    __shfl_sync(0xffffffffu, 0, 0);
    arrive(&empty);  // caught: race
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void bulk_copy_forgotten(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) copy_bulk(stage, x, 512, &full);  // caught: async-copy
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void bulk_copy_of_odd_size(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) copy_bulk(stage, x, 8, &full);  // caught: misaligned
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void bulk_copy_beyond_source(const float* x, float* y) {
    start_both(1, 1);
    if (threadIdx.x == 0) copy_bulk(stage, x + 64, 512, &full);  // caught: out-of-bounds
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void arrival_without_its_copies(const float* x, float* y) {
    start_both(32, 1);
    copy_16_bytes(&stage[4 * threadIdx.x], x + 4 * threadIdx.x);
    arrive(&full);
    wait_for_phase(&full, 0);
    y[threadIdx.x] = stage[127 - threadIdx.x];  // caught: async-copy
    wait_for_copies<0>();
}
