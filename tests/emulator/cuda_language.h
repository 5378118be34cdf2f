// CUDA C as a C++ compiler sees it: included before a kernel's text, which is compiled as it stands.
//
// Only what raw kernels compiled by NVRTC without headers may use; half types are in include/. Fast
// approximations (__expf) are computed accurately. Functions that read memory of the runtime are
// neither checked nor inlined (UNCHECKED); all others are, so that what they do on behalf of a
// kernel is checked like the kernel's own code.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
// The one storage class that C++ accepts wherever CUDA accepts __shared__: in a function, where it
// implies `static`, and after `extern`. All of it lies in the thread-local block of the library,
// where the runtime finds it by the tables of build.py.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

#define UNCHECKED __attribute__((no_sanitize("thread", "undefined"), noinline))

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
constexpr int warpSize = 32;

// ---- vector types ------------------------------------------------------------------------------

#define VECTOR_TYPES(T, name, align2, align4)                                              \
    struct __attribute__((aligned(align2))) name##2 {                                      \
        T x, y;                                                                            \
    };                                                                                     \
    struct __attribute__((aligned(align4))) name##4 {                                      \
        T x, y, z, w;                                                                      \
    };                                                                                     \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

VECTOR_TYPES(signed char, char, 2, 4)
VECTOR_TYPES(unsigned char, uchar, 2, 4)
VECTOR_TYPES(short, short, 4, 8)
VECTOR_TYPES(unsigned short, ushort, 4, 8)
VECTOR_TYPES(int, int, 8, 16)
VECTOR_TYPES(unsigned, uint, 8, 16)
VECTOR_TYPES(long long, longlong, 16, 16)
VECTOR_TYPES(unsigned long long, ulonglong, 16, 16)
VECTOR_TYPES(float, float, 8, 16)
VECTOR_TYPES(double, double, 16, 16)
#undef VECTOR_TYPES

// ---- bits --------------------------------------------------------------------------------------

namespace emulator {

template <class To, class From>
static inline To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

// Any value of up to 8 bytes, as the runtime carries it from lane to lane.
template <class T>
static inline uint64_t to_word(T value) {
    static_assert(sizeof(T) <= 8, "shuffles carry at most 8 bytes");
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}

template <class T>
static inline T from_word(uint64_t word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

}  // namespace emulator

static inline int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
static inline float __int_as_float(int x) { return emulator::bit_cast<float>(x); }
static inline unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
static inline long long __double_as_longlong(double x) { return emulator::bit_cast<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulator::bit_cast<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
    return reversed;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(uint64_t(a) * b >> 32);
}

// ---- casts -------------------------------------------------------------------------------------

namespace emulator {

// A pointer must suit the alignment of the type it is cast to: the compiler checks this where it
// loads a number, but not where it copies a whole structure.
template <class To, class From>
static __forceinline__ To checked_cast(From from) {
    if constexpr (std::is_pointer_v<To> && std::is_pointer_v<From>) {
        before_cast(from, alignof(std::remove_pointer_t<To>));
    }
    return reinterpret_cast<To>(from);
}

}  // namespace emulator

#define reinterpret_cast emulator::checked_cast

// ---- arithmetic --------------------------------------------------------------------------------

// Of floating-point numbers CUDA takes the one that is not NaN.
template <class A, class B>
static inline std::common_type_t<A, B> min(A a, B b) {
    using Common = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<Common>) return std::fmin(Common(a), Common(b));
    return Common(b) < Common(a) ? Common(b) : Common(a);
}
template <class A, class B>
static inline std::common_type_t<A, B> max(A a, B b) {
    using Common = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<Common>) return std::fmax(Common(a), Common(b));
    return Common(a) < Common(b) ? Common(b) : Common(a);
}

// glibc has functions of these names
#define __expf emulator_expf
#define __exp10f emulator_exp10f
#define __logf emulator_logf
#define __log2f emulator_log2f
#define rsqrtf emulator_rsqrtf
static inline float __expf(float x) { return expf(x); }
static inline float __exp10f(float x) { return powf(10.0f, x); }
static inline float __logf(float x) { return logf(x); }
static inline float __log2f(float x) { return log2f(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

namespace emulator {

// As the cvt instruction: out of range gives the nearest integer there is, NaN gives 0. A plain
// cast of such a value is undefined in C++ and reported.
template <class Float>
static inline int saturated_int(Float whole) {
    if (whole != whole) return 0;
    if (whole >= Float(2147483648.0)) return INT32_MAX;
    if (whole < Float(-2147483648.0)) return INT32_MIN;
    return static_cast<int>(whole);
}

}  // namespace emulator

static inline int __float2int_rn(float x) { return emulator::saturated_int(rintf(x)); }
static inline int __float2int_rd(float x) { return emulator::saturated_int(floorf(x)); }
static inline int __float2int_ru(float x) { return emulator::saturated_int(ceilf(x)); }
static inline int __float2int_rz(float x) { return emulator::saturated_int(truncf(x)); }
static inline int __double2int_rn(double x) { return emulator::saturated_int(rint(x)); }
static inline int __double2int_rd(double x) { return emulator::saturated_int(floor(x)); }
static inline int __double2int_ru(double x) { return emulator::saturated_int(ceil(x)); }
static inline int __double2int_rz(double x) { return emulator::saturated_int(trunc(x)); }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
static inline double __int2double_rn(int x) { return static_cast<double>(x); }
static inline float __double2float_rn(double x) { return static_cast<float>(x); }

// ---- memory ------------------------------------------------------------------------------------

// Cache hints change no value. Inlined even without optimisation, so that a report names the
// kernel.
#define LOAD_WITH_HINT(name)                      \
    template <class T>                            \
    static __forceinline__ T name(const T* p) {   \
        return *p;                                \
    }
#define STORE_WITH_HINT(name)                              \
    template <class T>                                     \
    static __forceinline__ void name(T* p, T value) {      \
        *p = value;                                        \
    }
LOAD_WITH_HINT(__ldg)
LOAD_WITH_HINT(__ldca)
LOAD_WITH_HINT(__ldcg)
LOAD_WITH_HINT(__ldcs)
STORE_WITH_HINT(__stwb)
STORE_WITH_HINT(__stcg)
STORE_WITH_HINT(__stcs)
#undef LOAD_WITH_HINT
#undef STORE_WITH_HINT

// Blocks run one after the other and memory is sequentially consistent: a fence has nothing to do.
static inline void __threadfence() {}
static inline void __threadfence_block() {}

UNCHECKED static inline size_t __cvta_generic_to_shared(const void* pointer) {
    return emulator::shared_address(pointer, __builtin_return_address(0));
}

namespace emulator {

template <class T, class Update>
UNCHECKED static T read_modify_write(T* address, Update update) {
    static_assert(std::is_integral_v<T>,
                  "no floating-point atomics: their order, and with it the result, would vary");
    before_atomic(address, sizeof(T), __builtin_return_address(0));
    const T old = *address;
    *address = update(old);
    return old;
}

template <class T>
struct exactly {  // keeps T from being deduced from this argument: atomicAdd(&unsigned_count, 1)
    using type = T;
};

}  // namespace emulator

#define ATOMIC(name, result)                                                                      \
    template <class T>                                                                            \
    static __forceinline__ T name(T* address, typename emulator::exactly<T>::type value) {        \
        return emulator::read_modify_write(address, [value](T old) { return T(result); });        \
    }
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicSub, old - value)
ATOMIC(atomicMin, old < value ? old : value)
ATOMIC(atomicMax, old > value ? old : value)
ATOMIC(atomicAnd, old & value)
ATOMIC(atomicOr, old | value)
ATOMIC(atomicXor, old ^ value)
ATOMIC(atomicExch, value)
#undef ATOMIC
template <class T>
static __forceinline__ T atomicCAS(T* address, typename emulator::exactly<T>::type expected,
                                   typename emulator::exactly<T>::type value) {
    return emulator::read_modify_write(
        address, [expected, value](T old) { return old == expected ? value : old; });
}

// ---- barriers and warp collectives -------------------------------------------------------------

// The default argument is evaluated where the kernel calls.
#define PLACE emulator::Place place = emulator::Place::here()

static inline void __syncthreads(PLACE) { emulator::block_barrier(place, 0); }
static inline int __syncthreads_count(int predicate, PLACE) {
    return emulator::block_barrier(place, predicate);
}
static inline int __syncthreads_or(int predicate, PLACE) {
    return emulator::block_barrier(place, predicate) > 0;
}
static inline int __syncthreads_and(int predicate, PLACE) {
    return emulator::block_barrier(place, !predicate) == 0;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, PLACE) {
    emulator::warp_barrier(place, mask);
}

// A shuffle within segments of `width` lanes, of which a lane cannot leave its own.
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, PLACE) {
    const int first = emulator::lane_index() & ~(width - 1);
    return emulator::from_word<T>(emulator::shuffle(place, "__shfl_sync", mask,
                                                    emulator::to_word(value),
                                                    first | (source & (width - 1))));
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PLACE) {
    const int lane = emulator::lane_index(), first = lane & ~(width - 1);
    const int source = lane - static_cast<int>(delta);
    return emulator::from_word<T>(emulator::shuffle(place, "__shfl_up_sync", mask,
                                                    emulator::to_word(value),
                                                    source < first ? lane : source));
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PLACE) {
    const int lane = emulator::lane_index(), last = lane | (width - 1);
    const int source = lane + static_cast<int>(delta);
    return emulator::from_word<T>(emulator::shuffle(place, "__shfl_down_sync", mask,
                                                    emulator::to_word(value),
                                                    source > last ? lane : source));
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, PLACE) {
    const int lane = emulator::lane_index(), last = lane | (width - 1);
    const int source = lane ^ lane_mask;
    return emulator::from_word<T>(emulator::shuffle(place, "__shfl_xor_sync", mask,
                                                    emulator::to_word(value),
                                                    source > last ? lane : source));
}

namespace emulator {

// One bit for each lane that takes part and whose value passes the test.
template <class Test>
UNCHECKED static unsigned lanes_that(const LaneValues& all, Test test) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((all.lanes >> lane & 1) && test(all.value[lane])) result |= 1u << lane;
    }
    return result;
}

UNCHECKED static inline unsigned vote(Place place, const char* operation, unsigned mask,
                                      int predicate, unsigned* participants) {
    const LaneValues& all = exchange(place, operation, mask, predicate != 0);
    *participants = all.lanes;
    return lanes_that(all, [](uint64_t value) { return value != 0; });
}

template <class T, class Combine>
UNCHECKED static T reduce(Place place, const char* operation, unsigned mask, T value,
                          Combine combine) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);
    const LaneValues& all = exchange(place, operation, mask, to_word(value));
    bool first = true;
    T result = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(all.lanes >> lane & 1)) continue;
        const T next = from_word<T>(all.value[lane]);
        result = first ? next : T(combine(result, next));
        first = false;
    }
    return result;
}

}  // namespace emulator

static inline unsigned __ballot_sync(unsigned mask, int predicate, PLACE) {
    unsigned participants;
    return emulator::vote(place, "__ballot_sync", mask, predicate, &participants);
}
static inline int __any_sync(unsigned mask, int predicate, PLACE) {
    unsigned participants;
    return emulator::vote(place, "__any_sync", mask, predicate, &participants) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, PLACE) {
    unsigned participants;
    const unsigned agreeing =
        emulator::vote(place, "__all_sync", mask, predicate, &participants);
    return agreeing == participants;
}
template <class T>
UNCHECKED static unsigned __match_any_sync(unsigned mask, T value, PLACE) {
    const uint64_t mine = emulator::to_word(value);
    const auto& all = emulator::exchange(place, "__match_any_sync", mask, mine);
    return emulator::lanes_that(all, [mine](uint64_t other) { return other == mine; });
}

#if __CUDA_ARCH__ >= 800
#define REDUCE(name, T, result)                                                       \
    static inline T name(unsigned mask, T value, PLACE) {                             \
        return emulator::reduce(place, #name, mask, value,                            \
                                [](T a, T b) { return result; });                     \
    }
REDUCE(__reduce_add_sync, unsigned, a + b)
REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
REDUCE(__reduce_and_sync, unsigned, a & b)
REDUCE(__reduce_or_sync, unsigned, a | b)
REDUCE(__reduce_xor_sync, unsigned, a ^ b)
REDUCE(__reduce_add_sync, int, static_cast<int>(unsigned(a) + unsigned(b)))
REDUCE(__reduce_min_sync, int, a < b ? a : b)
REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef REDUCE
#endif
#undef PLACE

// ---- inline PTX --------------------------------------------------------------------------------

// inline_ptx.py puts calls of these in the place of the asm statements it knows.
namespace emulator {

#if __CUDA_ARCH__ >= 800
UNCHECKED static inline void ptx_cp_async(unsigned target, const void* source, int bytes,
                                          int source_bytes) {
    copy_async(target, source, bytes, source_bytes, __builtin_return_address(0));
}
static inline void ptx_cp_async_commit_group() { commit_copies(); }
static inline void ptx_cp_async_wait_group(int groups_left_pending) {
    wait_for_copies(groups_left_pending);
}
static inline void ptx_cp_async_wait_all() {
    commit_copies();
    wait_for_copies(0);
}
UNCHECKED static inline void ptx_cp_async_mbarrier_arrive_noinc(unsigned barrier) {
    mbarrier_arrive_with_copies(barrier, __builtin_return_address(0));
}
UNCHECKED static inline void ptx_mbarrier_init(unsigned barrier, unsigned arrivals) {
    mbarrier_init(barrier, arrivals, __builtin_return_address(0));
}
UNCHECKED static inline void ptx_mbarrier_arrive(unsigned barrier) {
    mbarrier_arrive(barrier, 0, __builtin_return_address(0));
}
UNCHECKED static inline bool ptx_mbarrier_test_wait_parity(unsigned barrier, unsigned parity) {
    return mbarrier_wait(barrier, parity, __builtin_return_address(0));
}
#endif

#if __CUDA_ARCH__ >= 900
UNCHECKED static inline bool ptx_mbarrier_try_wait_parity(unsigned barrier, unsigned parity) {
    return mbarrier_wait(barrier, parity, __builtin_return_address(0));
}
UNCHECKED static inline void ptx_mbarrier_arrive_expect_tx(unsigned barrier, unsigned bytes) {
    mbarrier_arrive(barrier, bytes, __builtin_return_address(0));
}
UNCHECKED static inline void ptx_cp_async_bulk(unsigned target, const void* source, unsigned bytes,
                                               unsigned barrier) {
    copy_bulk(target, source, bytes, barrier, __builtin_return_address(0));
}
#endif

// Vectors at a shared address, checked like the kernel's own accesses.
UNCHECKED static inline void* shared_pointer(unsigned address) {
    return shared_memory_window() + address;
}
static __forceinline__ float4 ptx_ld_shared_v4_f32(unsigned address) {
    return *reinterpret_cast<const float4*>(shared_pointer(address));
}
static __forceinline__ void ptx_st_shared_v4_f32(unsigned address, float4 value) {
    *reinterpret_cast<float4*>(shared_pointer(address)) = value;
}

}  // namespace emulator

// ---- kernel entries ----------------------------------------------------------------------------

namespace emulator {

// Names of NumPy, except bfloat16, which NumPy lacks: it travels as uint16. A vector type counts as
// its elements; "" is any type.
template <class T, class = void>
struct ElementName {
    static constexpr const char* value = "";
};
template <class T>
struct ElementName<T, decltype(void(T::numpy_name))> {
    static constexpr const char* value = T::numpy_name;
};
template <class T>
struct ElementName<T, decltype(void(&T::x), void(&T::y))> : ElementName<decltype(T::x)> {};
#define ELEMENT_NAME(T, name)                       \
    template <>                                     \
    struct ElementName<T> {                         \
        static constexpr const char* value = name;  \
    };
ELEMENT_NAME(bool, "bool")
ELEMENT_NAME(char, "int8")
ELEMENT_NAME(signed char, "int8")
ELEMENT_NAME(unsigned char, "uint8")
ELEMENT_NAME(short, "int16")
ELEMENT_NAME(unsigned short, "uint16")
ELEMENT_NAME(int, "int32")
ELEMENT_NAME(unsigned, "uint32")
ELEMENT_NAME(long, "int64")
ELEMENT_NAME(unsigned long, "uint64")
ELEMENT_NAME(long long, "int64")
ELEMENT_NAME(unsigned long long, "uint64")
ELEMENT_NAME(float, "float32")
ELEMENT_NAME(double, "float64")
#undef ELEMENT_NAME

// Mirrored by ctypes in launch.py.
struct Parameter {
    const char* element_name;
    int is_pointer, is_const;
};

template <class T>
constexpr Parameter describe() {
    using Element = std::remove_pointer_t<T>;
    return {ElementName<std::remove_cv_t<Element>>::value, std::is_pointer_v<T>,
            std::is_const_v<Element>};
}

template <class... Arguments>
struct Kernel {
    void (*function)(Arguments...);

    static int parameters(const Parameter** table) {
        static constexpr Parameter described[] = {describe<Arguments>()..., {"", 0, 0}};
        *table = described;
        return sizeof...(Arguments);
    }

    // As cuLaunchKernel takes them: one pointer to the value of each argument.
    UNCHECKED void run(void** arguments) const {
        run(arguments, std::index_sequence_for<Arguments...>());
    }
    template <size_t... I>
    UNCHECKED void run(void** arguments, std::index_sequence<I...>) const {
        function(*static_cast<Arguments*>(arguments[I])...);
    }
};

template <class... Arguments>
constexpr Kernel<Arguments...> entry(void (*function)(Arguments...)) {
    return {function};
}

}  // namespace emulator

#define EMULATED_KERNEL(name)                                                                     \
    extern "C" UNCHECKED __attribute__((visibility("default"))) void emulator_run_##name(         \
        void** arguments) {                                                                       \
        emulator::entry(&name).run(arguments);                                                    \
    }                                                                                             \
    extern "C" UNCHECKED __attribute__((visibility("default"))) int emulator_parameters_##name(   \
        const emulator::Parameter** table) {                                                      \
        return emulator::entry(&name).parameters(table);                                          \
    }
