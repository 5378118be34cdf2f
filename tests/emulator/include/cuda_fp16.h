// The part of CUDA's cuda_fp16.h that kernels of this project use. Operations round to nearest even
// once, as the hardware does: float holds the product of two halves and rounds their sum
// innocuously; double does as much for a fused multiply-add, rare ties of very unequal summands
// excepted.
#pragma once
#include "../cuda_language.h"

// Without constructors, because a thread_local array of a class that has one may be guarded by a
// flag in shared memory. So kernels convert by the intrinsics.
struct __half {
    static constexpr const char* numpy_name = "float16";
    _Float16 value;

    operator float() const { return static_cast<float>(value); }
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

static inline float __half2float(__half a) { return a; }
static inline __half __float2half(float a) { return {static_cast<_Float16>(a)}; }
static inline __half __float2half_rn(float a) { return {static_cast<_Float16>(a)}; }
static inline __half __double2half(double a) {
    // By way of a float that is rounded to odd: then the second rounding is the only one.
    float near = static_cast<float>(a);
    if (near != a && a == a) {
        uint32_t bits = emulator::bit_cast<uint32_t>(near);
        if (fabs(static_cast<double>(near)) > fabs(a)) --bits;
        near = emulator::bit_cast<float>(bits | 1u);
    }
    return {static_cast<_Float16>(near)};
}
static inline unsigned short __half_as_ushort(__half a) {
    return emulator::bit_cast<unsigned short>(a);
}
static inline __half __ushort_as_half(unsigned short a) { return emulator::bit_cast<__half>(a); }

static inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
static inline __half2 __half2half2(__half a) { return {a, a}; }
static inline __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
static inline __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
static inline __half2 __float2half2_rn(float a) { return __half2half2(__float2half(a)); }
static inline __half2 __floats2half2_rn(float low, float high) {
    return {__float2half(low), __float2half(high)};
}
static inline __half2 __float22half2_rn(float2 a) { return __floats2half2_rn(a.x, a.y); }
static inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
static inline __half __low2half(__half2 a) { return a.x; }
static inline __half __high2half(__half2 a) { return a.y; }
static inline float __low2float(__half2 a) { return a.x; }
static inline float __high2float(__half2 a) { return a.y; }

static inline __half __hadd(__half a, __half b) { return __float2half(float(a) + float(b)); }
static inline __half __hsub(__half a, __half b) { return __float2half(float(a) - float(b)); }
static inline __half __hmul(__half a, __half b) { return __float2half(float(a) * float(b)); }
static inline __half __hfma(__half a, __half b, __half c) {
    return __double2half(double(float(a)) * double(float(b)) + double(float(c)));
}
static inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
static inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
static inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
