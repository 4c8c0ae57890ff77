// CUDA's words for a C++ compiler of the host, so that a generated kernel runs on the CPU as it is.
// A CUDA thread is a fiber; all fibers of all blocks share one thread of the host, and a scheduler decides who goes on.
#pragma once
#include <cmath>
#include <cstring>

#define TS_ON_CPU
#define __global__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct ShimIndex {
    unsigned x, y, z;
};
extern ShimIndex threadIdx, blockIdx, gridDim;

char* shim_shared();              // the block's shared memory, full of NaN at first
void shim_barrier(int line);      // until all threads of the block have come to this line
void shim_yield();                // let others go on

// What the lanes of a warp hold of the operands of a tensor core's product.
struct ShimWarp {
    float left[32][8], right[32][4];
    unsigned arrivals[2], wanted[32];
};
ShimWarp* shim_warp();
void shim_moved();                // something happened but waiting

#define __syncthreads() shim_barrier(__LINE__)
#define TS_SHARED(name) char* const name = shim_shared()
#define TS_INFINITY __builtin_inf()
#define TS_INFINITYF __builtin_inff()
#define TS_NAN __builtin_nan("")
#define TS_NANF __builtin_nanf("")

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
}
inline unsigned short ts_to_float16(float x) {
    const _Float16 half = x;
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline float ts_from_float16(unsigned short bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
}
// The 10 upper bits of the significand, to the nearest, away from zero from the middle.
inline float ts_to_tf32(float x) { return x - x == 0 ? __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu) : x; }

// (16, K) times (K, 8) plus (16, 8), each lane with its share; which that is, is said in the PTX manual's tables of the
// fragments of mma.m16n8k8 (TF32: 4 and 2 numbers a lane) and mma.m16n8k16 (16 bits: 8 and 4).
template <class A, class B> inline void ts_mma(float* c, const A& left, const B& right) {
    constexpr int HELD = sizeof(left.at) / sizeof(left.at[0]), K = HELD * 2, PAIR = HELD / 4;
    ShimWarp* const warp = shim_warp();
    const unsigned lane = threadIdx.x % 32;
    for (int i = 0; i < HELD; i++) warp->left[lane][i] = left.at[i];
    for (int i = 0; i < HELD / 2; i++) warp->right[lane][i] = right.at[i];
    const unsigned all = warp->wanted[lane] += 32;
    for (int gate = 0; gate < 2; gate++) {
        warp->arrivals[gate]++;
        shim_moved();
        while (int(warp->arrivals[gate] - all) < 0) shim_yield();
        for (int j = 0; j < 4 && gate == 0; j++) {
            const int row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
            for (int k = 0; k < K; k++) {
                const int holder = k % (K / 2) / PAIR, half = k / (K / 2);
                const float a = warp->left[row % 8 * 4 + holder][(half * 2 + row / 8) * PAIR + k % PAIR];
                const float b = warp->right[column * 4 + holder][half * PAIR + k % PAIR];
                c[j] += a * b;
            }
        }
    }
}

inline void __threadfence() {}
inline unsigned atomicInc(unsigned* place, unsigned most) {
    const unsigned old = *place;
    *place = old >= most ? 0 : old + 1;
    return old;
}
template <class F> inline F __ldcg(const F* p) { return *p; }
inline void ts_arrive(unsigned* arrivals) { ++*arrivals; }
inline unsigned ts_arrived(unsigned* arrivals) {
    shim_yield();
    return *arrivals;
}
