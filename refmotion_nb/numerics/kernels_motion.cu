// Sampling of correlation windows, and the trajectories of a micrograph found in one launch: the twins of kernels_motion.py.
// In the latter a block of threads takes one set of hyperparameters down to its minimum. Threads wait for each other between
// steps; sums are taken in one order, so that they come out the same on every run. Arrays are C-contiguous.

typedef long long int64;

const int THREADS = 512; // that descend together
const int MEMORY = 8;    // steps of L-BFGS that are remembered
const int TRIALS = 13;   // of ever shorter steps
const int VECTORS = 6 + 2 * MEMORY; // of all unknowns that a set has to work in
// products of matrices go through tiles: 4 × 2 elements to a thread, a few more in a row so that banks do not collide
const int ROWS = 128, COLUMNS = 32, DEPTH = 32, LEFT = ROWS + 4, RIGHT = COLUMNS + 1;
const int WARP = 32;

// value and gradient of a window at (px, py) samples from its first one; beyond its edge the value at the edge continues
template <typename Real>
__device__ inline void interpolate(const Real *__restrict__ window, int size, Real px, Real py,
                                   const Real *__restrict__ taps, const Real *__restrict__ slopes, Real &value, Real &along_x,
                                   Real &along_y)
{
    const Real low = 1, high = size - 2;
    // what is no number is not looked for far away
    const Real x = px > low ? px < high ? px : high : low, y = py > low ? py < high ? py : high : low;
    const int ix = int(x) < size - 3 ? int(x) : size - 3, iy = int(y) < size - 3 ? int(y) : size - 3;
    const Real u = x - ix, v = y - iy;
    const Real *corner = window + (iy - 1) * size + ix - 1;
    Real wx[4], dx[4], total = 0, gx = 0, gy = 0;
    for (int t = 0; t < 4; ++t) {
        wx[t] = taps[4 * t] + u * (taps[4 * t + 1] + u * (taps[4 * t + 2] + u * taps[4 * t + 3]));
        dx[t] = slopes[3 * t] + u * (slopes[3 * t + 1] + u * slopes[3 * t + 2]);
    }
    for (int t = 0; t < 4; ++t) {
        const Real *w = corner + t * size;
        const Real wy = taps[4 * t] + v * (taps[4 * t + 1] + v * (taps[4 * t + 2] + v * taps[4 * t + 3]));
        const Real dy = slopes[3 * t] + v * (slopes[3 * t + 1] + v * slopes[3 * t + 2]);
        const Real row = w[0] * wx[0] + w[1] * wx[1] + w[2] * wx[2] + w[3] * wx[3];
        total += wy * row;
        gy += dy * row;
        gx += wy * (w[0] * dx[0] + w[1] * dx[1] + w[2] * dx[2] + w[3] * dx[3]);
    }
    value = total;
    along_x = x == px ? gx : Real(0);
    along_y = y == py ? gy : Real(0);
}

template <typename Real>
__device__ inline void sample(const Real *__restrict__ windows, const Real *__restrict__ position,
                              const Real *__restrict__ taps, const Real *__restrict__ slopes, int n_patches, int size,
                              Real *__restrict__ value, Real *__restrict__ gradient)
{
    const int at = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n_patches) return;
    const size_t here = size_t(blockIdx.z) * n_patches + at;
    const size_t along_x = here + size_t(blockIdx.z) * n_patches, along_y = along_x + n_patches;
    interpolate(windows + size_t(at) * size * size, size, position[along_x], position[along_y], taps, slopes, value[here],
                gradient[along_x], gradient[along_y]);
}

#define SAMPLE(name, Real)                                                                                             \
    extern "C" __global__ void name(const Real *__restrict__ windows, const Real *__restrict__ position,               \
                                    const Real *__restrict__ taps, const Real *__restrict__ slopes, int n_patches,     \
                                    int size, Real *__restrict__ value, Real *__restrict__ gradient)                   \
    {                                                                                                                  \
        sample<Real>(windows, position, taps, slopes, n_patches, size, value, gradient);                               \
    }

SAMPLE(sample_float32, float)
SAMPLE(sample_float64, double)

// add up what every thread has; ``room`` takes THREADS + WARP numbers
__device__ inline double total(double mine, double *room)
{
    const int at = threadIdx.x;
    room[at] = mine;
    __syncthreads();
    if (at < WARP) {
        double sum = 0;
        for (int i = at; i < THREADS; i += WARP) sum += room[i];
        room[THREADS + at] = sum;
    }
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARP; ++i) sum += room[THREADS + i];
    return sum;
}

// scalar product of two vectors; in all loops over vectors a thread has the same elements, and need not wait for others
__device__ inline double dot(const double *a, const double *b, int n, double *room)
{
    double sum = 0;
    for (int j = threadIdx.x; j < n; j += THREADS) sum += a[j] * b[j];
    return total(sum, room);
}

__device__ inline void add(double *out, double factor, const double *values, int n)
{
    for (int j = threadIdx.x; j < n; j += THREADS) out[j] += factor * values[j];
}

__device__ inline int least(int a, int b) { return a < b ? a : b; }

// store(i, j, Σ left(i, k) right(k, j)) for all i < m and j < n. Neighbouring threads read neighbouring k where ALONG says so,
// else neighbouring i or j. What other threads have written before can be read, what is stored not before threads have waited.
template <typename Real, bool LEFT_ALONG, bool RIGHT_ALONG, typename Left, typename Right, typename Store>
__device__ inline void product(int m, int n, int depth, double *room, Left left, Right right, Store store)
{
    Real *of_left = reinterpret_cast<Real *>(room), *of_right = of_left + DEPTH * LEFT; // (k, i), (k, j)
    const int across = threadIdx.x % (COLUMNS / 2), down = threadIdx.x / (COLUMNS / 2) * 4;
    for (int row = 0; row < m; row += ROWS) {
        for (int column = 0; column < n; column += COLUMNS) {
            Real sum[4][2] = {};
            const int rows = least(ROWS, m - row), columns = least(COLUMNS, n - column);
            const bool idle = down >= rows || across >= columns;
            for (int first = 0; first < depth; first += DEPTH) {
                const int used = least(DEPTH, depth - first);
                __syncthreads();
                for (int at = threadIdx.x; at < (LEFT_ALONG ? rows * DEPTH : ROWS * used); at += THREADS) {
                    const int i = LEFT_ALONG ? at / DEPTH : at % ROWS, k = LEFT_ALONG ? at % DEPTH : at / ROWS;
                    if (i < rows && k < used) of_left[k * LEFT + i] = left(row + i, first + k);
                }
                for (int at = threadIdx.x; at < (RIGHT_ALONG ? columns * DEPTH : COLUMNS * used); at += THREADS) {
                    const int j = RIGHT_ALONG ? at / DEPTH : at % COLUMNS, k = RIGHT_ALONG ? at % DEPTH : at / COLUMNS;
                    if (j < columns && k < used) of_right[k * RIGHT + j] = right(first + k, column + j);
                }
                __syncthreads();
                for (int k = 0; k < used && !idle; ++k) {
                    const Real *a = of_left + k * LEFT + down, *b = of_right + k * RIGHT + across;
                    for (int i = 0; i < 4; ++i) {
                        sum[i][0] += a[i] * b[0];
                        sum[i][1] += a[i] * b[COLUMNS / 2];
                    }
                }
            }
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 2; ++j)
                    if (down + i < rows && across + j * COLUMNS / 2 < columns)
                        store(row + down + i, column + across + j * COLUMNS / 2, sum[i][j]);
        }
    }
}

// what a block needs to know of its set, see kernels_motion.py; x and y of all particles' positions lie in one row
template <typename Real> struct Set {
    const Real *windows, *taps, *slopes, *first, *spatial, *temporal;
    const double *std, *common, *turn, *gain, *whitening, *common_inverse;
    Real samples_per_A;
    int particles, frames, modes, width, size;
    Real *over_dose, *moved; // (mode, 2, frame), (particle, 2, frame): positions, then slopes in their place
    double *turned;          // (2, mode, width); also (2, frame) of what all particles have in common: width is frame
    double *tile, *sums;     // for products and sums, shared by the block

    __device__ int local() const { return 2 * modes * width; }
    __device__ int unknowns() const { return local() + 2 * frames; }
};

// take up the positions of all patches under the unknowns x
template <typename Real> __device__ inline void move(const Set<Real> &s, const double *x)
{
    const int frames = s.frames, both = 2 * frames, modes = s.modes, width = s.width;
    product<double, true, true>(
        2, frames, frames, s.tile, [&](int i, int k) { return x[s.local() + i * frames + k]; },
        [&](int k, int j) { return s.common[j * frames + k]; },
        [&](int i, int j, double sum) { s.turned[i * frames + j] = sum; });
    product<Real, true, false>(
        2 * modes, frames, width, s.tile,
        [&](int i, int k) { return Real(x[i * width + k] * s.std[i % modes * width + k]); },
        [&](int k, int j) { return s.temporal[k * frames + j]; },
        [&](int i, int j, Real sum) { s.over_dose[i % modes * both + i / modes * frames + j] = sum; });
    product<Real, true, false>(
        s.particles, both, modes, s.tile, [&](int i, int k) { return s.spatial[size_t(i) * modes + k]; },
        [&](int k, int j) { return s.over_dose[k * both + j]; },
        [&](int i, int j, Real sum) {
            const Real there = sum + Real(s.turned[j]);
            const int axis = j / frames;
            s.moved[i * both + j] = there * s.samples_per_A + s.first[(axis * s.particles + i) * frames + j % frames];
        });
    __syncthreads();
}

// put the slopes of windows, per Å, where positions were; return this thread's share of minus the values
template <typename Real> __device__ inline double slide(const Set<Real> &s)
{
    double mine = 0;
    for (int at = threadIdx.x; at < s.particles * s.frames; at += THREADS) {
        Real *x = s.moved + at / s.frames * 2 * s.frames + at % s.frames, *y = x + s.frames, value, along_x, along_y;
        interpolate(s.windows + size_t(at) * s.size * s.size, s.size, *x, *y, s.taps, s.slopes, value, along_x, along_y);
        *x = along_x * s.samples_per_A;
        *y = along_y * s.samples_per_A;
        mine -= value;
    }
    __syncthreads();
    return mine;
}

// fill in the gradient of the common motion and return this thread's share of its prior's energy; threads share particles
template <typename Real> __device__ inline double common(const Set<Real> &s, const double *x, double *gradient)
{
    const int frames = s.frames, both = 2 * frames;
    double mine = 0;
    for (int start = 0; start < both; start += WARP) {
        const int j = start + threadIdx.x % WARP, share = threadIdx.x / WARP;
        double sum = 0;
        for (int p = share; j < both && p < s.particles; p += THREADS / WARP) sum += s.moved[p * both + j];
        s.sums[threadIdx.x] = sum;
        __syncthreads();
        if (share == 0 && j < both) {
            for (int i = 1; i < THREADS / WARP; ++i) sum += s.sums[i * WARP + threadIdx.x];
            s.turned[j] = sum;
        }
        __syncthreads();
    }
    product<double, true, false>(
        2, frames, frames, s.tile, [&](int i, int k) { return s.turned[i * frames + k]; },
        [&](int k, int j) { return s.common[k * frames + j]; },
        [&](int i, int j, double sum) {
            const double one = x[s.local() + i * frames + j];
            gradient[s.local() + i * frames + j] = one - sum;
            mine += 0.5 * one * one;
        });
    return mine;
}

// return the energy at x; fill in its gradient
template <typename Real> __device__ inline double evaluate(const Set<Real> &s, const double *x, double *gradient)
{
    const int frames = s.frames, both = 2 * frames, modes = s.modes, width = s.width;
    move(s, x);
    double mine = slide(s);
    mine += common(s, x, gradient);
    product<Real, false, false>(
        modes, both, s.particles, s.tile, [&](int i, int k) { return s.spatial[size_t(k) * modes + i]; },
        [&](int k, int j) { return s.moved[k * both + j]; },
        [&](int i, int j, Real sum) { s.over_dose[i * both + j] = sum; });
    product<Real, true, true>(
        2 * modes, width, frames, s.tile,
        [&](int i, int k) { return s.over_dose[i % modes * both + i / modes * frames + k]; },
        [&](int k, int j) { return s.temporal[j * frames + k]; },
        [&](int i, int j, Real sum) {
            const double one = j ? x[i * width + j] : 0; // the position in the first frame is free
            gradient[i * width + j] = one - sum * s.std[i % modes * width + j];
            mine += 0.5 * one * one;
        });
    return total(mine, s.sums); // and all have waited for the gradient
}

// multiply a gradient by the approximate inverse Hessian
template <typename Real> __device__ inline void precondition(const Set<Real> &s, double *q)
{
    const int modes = s.modes, width = s.width;
    product<double, true, false>(
        2 * modes, width, width, s.tile,
        [&](int i, int k) { return q[i * width + k] * s.whitening[i % modes * width + k]; },
        [&](int k, int j) { return s.turn[k * width + j]; },
        [&](int i, int j, double sum) { s.turned[i * width + j] = sum * s.gain[i % modes * width + j]; });
    product<double, true, true>(
        2 * modes, width, width, s.tile, [&](int i, int k) { return s.turned[i * width + k]; },
        [&](int k, int j) { return s.turn[j * width + k]; },
        [&](int i, int j, double sum) { q[i * width + j] = sum * s.whitening[i % modes * width + j]; });
    for (int j = threadIdx.x; j < 2 * s.frames; j += THREADS) q[s.local() + j] *= s.common_inverse[j % s.frames];
    __syncthreads();
}

// the last steps (step, unknown) of L-BFGS and changes of the gradient; rho: 1 / their products, or 0
struct Pairs {
    double *steps, *changes, rho[MEMORY];
};

// fill in the quasi-Newton direction q (two-loop recursion); return how steep it falls
template <typename Real>
__device__ inline double descend(const Set<Real> &s, const Pairs &pairs, int iteration, const double *gradient, double *q)
{
    const int n = s.unknowns(), known = least(iteration, MEMORY);
    double alpha[MEMORY];
    for (int j = threadIdx.x; j < n; j += THREADS) q[j] = -gradient[j];
    for (int back = 1; back <= known; ++back) {
        const int i = (iteration - back) % MEMORY;
        alpha[i] = pairs.rho[i] * dot(pairs.steps + size_t(i) * n, q, n, s.sums);
        add(q, -alpha[i], pairs.changes + size_t(i) * n, n);
    }
    precondition(s, q);
    for (int back = known; back > 0; --back) {
        const int i = (iteration - back) % MEMORY;
        add(q, alpha[i] - pairs.rho[i] * dot(pairs.changes + size_t(i) * n, q, n, s.sums), pairs.steps + size_t(i) * n, n);
    }
    const double slope = dot(q, gradient, n, s.sums);
    if (slope < 0) return slope;
    for (int j = threadIdx.x; j < n; j += THREADS) q[j] = -gradient[j];
    return dot(q, gradient, n, s.sums);
}

// remember the step from x to new_x as the i-th
__device__ inline void remember(Pairs &pairs, int i, const double *x, const double *new_x, const double *gradient,
                                const double *new_gradient, int n, double *room)
{
    double *step = pairs.steps + size_t(i) * n, *change = pairs.changes + size_t(i) * n;
    for (int j = threadIdx.x; j < n; j += THREADS) {
        step[j] = new_x[j] - x[j];
        change[j] = new_gradient[j] - gradient[j];
    }
    const double along = dot(step, change, n, room), square = dot(change, change, n, room);
    pairs.rho[i] = along > 1e-12 * square ? 1 / along : 0;
}

__device__ inline void exchange(double *&a, double *&b)
{
    double *const kept = a;
    a = b;
    b = kept;
}

// ``vectors`` (VECTORS, unknown) is room to work in, ``x`` is where the set starts and ends
template <typename Real>
__device__ inline void descent(const Set<Real> &s, double *vectors, double tolerance, int most, double *x, int64 *taken)
{
    const int n = s.unknowns();
    double *here = vectors, *gradient = here + n, *there = gradient + n, *new_gradient = there + n, *q = new_gradient + n;
    Pairs pairs = {q + n, q + n + size_t(MEMORY) * n, {}};
    double energy = 0, slope = 0, length = 0;
    int iteration = 0, trial = 0;
    bool begun = false;
    for (int j = threadIdx.x; j < n; j += THREADS) there[j] = x[j];
    for (;;) { // there is one place where an energy is found: all is inlined, and compiling takes its time
        const double new_energy = evaluate(s, there, new_gradient);
        if (begun && new_energy > energy + 1e-4 * length * slope && ++trial < TRIALS)
            length *= 0.4;
        else {
            if (begun && !(new_energy < energy)) break; // it stays where it is
            if (begun) remember(pairs, (iteration - 1) % MEMORY, here, there, gradient, new_gradient, n, s.sums);
            exchange(here, there);
            exchange(gradient, new_gradient);
            energy = new_energy;
            begun = true;
            if (iteration == most) break;
            slope = descend(s, pairs, iteration, gradient, q);
            if (!(-0.5 * slope >= tolerance)) break;
            ++iteration;
            trial = 0;
            length = 1;
        }
        for (int j = threadIdx.x; j < n; j += THREADS) there[j] = here[j] + length * q[j];
    }
    for (int j = threadIdx.x; j < n; j += THREADS) x[j] = here[j];
    if (threadIdx.x == 0) *taken = iteration;
}

template <typename Real> __device__ inline void one_set(Set<Real> s, Real *work, double *vectors, double tolerance, int most,
                                                        double *x, int64 *iterations)
{
    const size_t set = blockIdx.x, both = 2 * s.frames, whitened = size_t(s.modes) * s.width;
    s.spatial += set * s.particles * s.modes;
    s.temporal += set * s.width * s.frames;
    s.turn += set * s.width * s.width;
    s.std += set * whitened;
    s.gain += set * whitened;
    s.whitening += set * whitened;
    s.over_dose = work + set * (s.modes + s.particles) * both;
    s.moved = s.over_dose + s.modes * both;
    vectors += set * VECTORS * s.unknowns();
    s.turned = vectors + (VECTORS - 1) * size_t(s.unknowns());
    descent(s, vectors, tolerance, most, x + set * s.unknowns(), iterations + set);
}

// arrays as ``solve`` in kernels_motion.py has them; ``x`` (set, unknown) is where sets start and end. Room to work in: ``work``
// (set, 2, mode + particle, frame), ``vectors`` (set, VECTORS, unknown)
#define SOLVE(name, Real)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        name(const Real *windows, const Real *taps, const Real *slopes, const Real *first, Real samples_per_A,         \
             const Real *spatial, const Real *temporal, const double *std, const double *common, const double *turn,   \
             const double *gain, const double *whitening, const double *common_inverse, int particles, int frames,     \
             int modes, int width, int size, Real *work, double *vectors, double tolerance, int most, double *x,       \
             int64 *iterations)                                                                                        \
    {                                                                                                                  \
        __shared__ __align__(16) double tile[DEPTH * (LEFT + RIGHT)];                                                  \
        __shared__ double sums[THREADS + WARP];                                                                        \
        const Set<Real> s = {windows, taps, slopes, first, spatial, temporal, std, common, turn, gain, whitening,      \
                             common_inverse, samples_per_A, particles, frames, modes, width, size,                     \
                             nullptr, nullptr, nullptr, tile, sums};                                                   \
        one_set(s, work, vectors, tolerance, most, x, iterations);                                                     \
    }

SOLVE(solve_float32, float)
SOLVE(solve_float64, double)
