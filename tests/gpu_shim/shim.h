// CUDA's words for a C++ compiler of the host, so that a generated kernel runs on the CPU as it is.
// A CUDA thread is a fiber; all fibers of all blocks share one thread of the host, and a scheduler decides who goes on.
#pragma once
#include <cmath>

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

#define __syncthreads() shim_barrier(__LINE__)
#define TS_SHARED(name) char* const name = shim_shared()
#define TS_INFINITY __builtin_inf()
#define TS_INFINITYF __builtin_inff()
#define TS_NAN __builtin_nan("")
#define TS_NANF __builtin_nanf("")

template <class F> inline F __ldcg(const F* p) { return *p; }
inline void ts_arrive(unsigned* arrivals) { ++*arrivals; }
inline unsigned ts_arrived(unsigned* arrivals) {
    shim_yield();
    return *arrivals;
}
