// What CUDA C++ needs to be compiled by the host's compiler: kernels of CuPy and ours run one thread after another, and
// threads of a block that wait for each other as fibers which take turns: from the first to the last, or the other way round
// where HOST_LAST_FIRST is set. With HOST_THREADS each is a thread of the host, so that a sanitizer sees where one reads what
// another writes.
#pragma once
#undef _FORTIFY_SOURCE // it takes a jump from stack to stack for an error
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <thread>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#ifdef HOST_THREADS
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct double2 {
    double x, y;
};
struct short2 {
    short x, y;
};
static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

#define PAIR(type)                                                                                                     \
    inline type min(type a, type b) { return a < b ? a : b; }                                                          \
    inline type max(type a, type b) { return a > b ? a : b; }
PAIR(int)
PAIR(long) PAIR(long long) PAIR(unsigned) PAIR(unsigned long) PAIR(unsigned long long)
#undef PAIR
    inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float rsqrt(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }
inline void sincospif(float a, float *s, float *c) {
    *s = float(sin(M_PI * a));
    *c = float(cos(M_PI * a));
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
#ifdef __F16C__
inline unsigned short __float2half_rn(float a) { return _cvtss_sh(a, 0); }
inline float __half2float(unsigned short a) { return _cvtsh_ss(a); }
inline float __ushort_as_half(unsigned short a) { return __half2float(a); }
#endif

template <class To, class From> To same_bits(From a) {
    To b;
    static_assert(sizeof a == sizeof b);
    memcpy(&b, &a, sizeof b);
    return b;
}
template <class Half> unsigned short __half_as_ushort(Half a) { return same_bits<unsigned short>(a); }
inline long long __double_as_longlong(double a) { return same_bits<long long>(a); }
inline double __longlong_as_double(long long a) { return same_bits<double>(a); }
inline int __float_as_int(float a) { return same_bits<int>(a); }
inline float __int_as_float(int a) { return same_bits<float>(a); }
inline int __double2hiint(double a) { return int(same_bits<long long>(a) >> 32); }
inline int __double2loint(double a) { return int(same_bits<long long>(a)); }
inline double __hiloint2double(int high, int low) { return same_bits<double>((long long)high << 32 | unsigned(low)); }

template <class T> T atomicAdd(T *at, T value) {
    T before = *at;
    *at = before + value;
    return before;
}
template <class T> T atomicCAS(T *at, T old, T value) {
    T before = *at;
    if (before == old) *at = value;
    return before;
}

// a launch: parameters come as pointers to their values

template <class... A> struct Call {
    void (*kernel)(A...);
    void **values;
};
template <class... A, size_t... I> void call_once(Call<A...> *call, std::index_sequence<I...>) {
    call->kernel(*(A *)call->values[I]...);
}
template <class... A> void one_thread(void *call) { call_once((Call<A...> *)call, std::index_sequence_for<A...>()); }

#ifdef HOST_THREADS // kernels of our own only: one dimension of threads, which do not shuffle

static pthread_barrier_t barrier_;
static void __syncthreads() { pthread_barrier_wait(&barrier_); }

template <class... A>
void run(void (*kernel)(A...), const unsigned *grid, const unsigned *block, void **values, bool together) {
    const unsigned hosts = together ? block[0] : std::min(block[0], 16u);
    Call<A...> call{kernel, values};
    pthread_barrier_init(&barrier_, nullptr, hosts);
    std::vector<std::thread> all;
    for (unsigned host = 0; host < hosts; ++host)
        all.emplace_back([&, host] {
            gridDim = {grid[0], grid[1], grid[2]};
            blockDim = {block[0], block[1], block[2]};
            for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
                for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
                    for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                        threadIdx.x = (host + 5 * blockIdx.x) % hosts; // neighbours in any block are others' too
                        for (; threadIdx.x < block[0]; threadIdx.x += hosts) one_thread<A...>(&call);
                        if (together) __syncthreads(); // the next block has what they share
                    }
        });
    for (auto &one : all) one.join();
    pthread_barrier_destroy(&barrier_);
}

#else // threads of a block that wait for each other are fibers

enum Waits { RUNS, FOR_BLOCK, FOR_WARP, ENDED };
struct Fiber {
    jmp_buf here;
    Waits waits;
    dim3 at;
};
struct Block {
    jmp_buf back;
    Fiber *now;
    void (*body)(void *);
    void *call;
    std::vector<Fiber *> threads;
    char shuffled[1024][16];
};
static thread_local Block block_;
static const unsigned LANES = 32, STACK_BYTES = 1 << 17;

static void rest(Fiber *me) { // until it is told to go on
    if (!_setjmp(me->here)) _longjmp(block_.back, 1);
    threadIdx = me->at;
}
static void wait(Waits what) {
    block_.now->waits = what;
    rest(block_.now);
}
static void __syncthreads() { wait(FOR_BLOCK); }
static void __syncwarp(unsigned = 0) { wait(FOR_WARP); }
static int linear() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

template <class T> T shuffle(T value, int from) {
    static_assert(sizeof value <= 16);
    memcpy(block_.shuffled[linear()], &value, sizeof value);
    __syncwarp();
    memcpy(&value, block_.shuffled[from], sizeof value);
    __syncwarp();
    return value;
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) { return shuffle(value, linear() ^ mask); }
template <class T> T __shfl_up_sync(unsigned, T value, int by, int width = 32) {
    return shuffle(value, linear() % width >= by ? linear() - by : linear());
}

// a fiber runs one thread of a block, then one of the next
static void live() {
    Fiber *me = block_.now;
    for (;;) {
        rest(me);
        block_.body(block_.call);
        me->waits = ENDED;
    }
}
static Fiber *born() {
    Fiber *one = block_.now = new Fiber{};
    ucontext_t context, unused;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(STACK_BYTES);
    context.uc_stack.ss_size = STACK_BYTES - block_.threads.size() * 832 % (1 << 15); // else all are in one corner of the cache
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    if (!_setjmp(block_.back)) swapcontext(&unused, &context);
    return one;
}
static void go_on(Fiber *one) {
    block_.now = one;
    if (!_setjmp(block_.back)) _longjmp(one->here, 1);
}
static bool all_of(unsigned first, unsigned end, Waits what) {
    for (unsigned k = first; k < end; ++k)
        if (block_.threads[k]->waits != what && block_.threads[k]->waits != ENDED) return false;
    return true;
}
static void let_go(unsigned first, unsigned end) {
    for (unsigned k = first; k < end; ++k)
        if (block_.threads[k]->waits != ENDED) block_.threads[k]->waits = RUNS;
}
static void run_together(void (*body)(void *), void *call) {
    const unsigned n = blockDim.x * blockDim.y * blockDim.z;
    const bool last_first = getenv("HOST_LAST_FIRST");
    block_.body = body;
    block_.call = call;
    while (block_.threads.size() < n) block_.threads.push_back(born());
    for (unsigned k = 0; k < n; ++k) {
        block_.threads[k]->waits = RUNS;
        block_.threads[k]->at = {k % blockDim.x, k / blockDim.x % blockDim.y, k / blockDim.x / blockDim.y};
    }
    for (;;) {
        bool ran = false;
        for (unsigned i = 0; i < n; ++i) {
            Fiber *one = block_.threads[last_first ? n - 1 - i : i];
            if (one->waits != RUNS) continue;
            ran = true;
            go_on(one);
        }
        if (all_of(0, n, ENDED)) return;
        if (!ran) {
            fprintf(stderr, "threads of a block wait for ever\n");
            abort();
        }
        if (all_of(0, n, FOR_BLOCK))
            let_go(0, n);
        else
            for (unsigned k = 0; k < n; k += LANES)
                if (all_of(k, std::min(k + LANES, n), FOR_WARP)) let_go(k, std::min(k + LANES, n));
    }
}

template <class... A>
void run(void (*kernel)(A...), const unsigned *grid, const unsigned *block, void **values, bool together) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    Call<A...> call{kernel, values};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                if (together) {
                    run_together(one_thread<A...>, &call);
                    continue;
                }
                for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x) one_thread<A...>(&call);
            }
}

#endif
