// The inner loops on a GPU, one thread to an element of the result. No thread waits for another and none adds to what
// another writes: sums come out the same on every run. Neighbouring threads take neighbouring kx, so that reads are
// coalesced. x of the grid counts elements, y frames or maps, z particles. Arrays are C-contiguous, see kernels_gpu.py.

typedef long long int64;
typedef unsigned long long uint64;

// this thread's element; threads beyond the last have nothing to do
#define ELEMENT(n)                                               \
    const int at = int(blockIdx.x * blockDim.x + threadIdx.x);   \
    if (at >= (n)) return

// exp(2πi turns); whole turns are taken off in double, after which float suffices
__device__ inline float2 phasor(double turns)
{
    float2 value;
    sincospif(float(2.0 * (turns - rint(turns))), &value.y, &value.x);
    return value;
}

__device__ inline float2 times(float2 a, float2 b)
{
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// a + t (b - a)
__device__ inline float2 between(float2 a, float2 b, float t)
{
    return make_float2(a.x + t * (b.x - a.x), a.y + t * (b.y - a.y));
}

__device__ inline int clamped(int64 value, int last)
{
    return value < 0 ? 0 : value > last ? last : int(value);
}

// a bad pixel takes the count of one of its sources, which are good: none that is read is written
template <typename Count>
__device__ inline void repair(Count *__restrict__ counts, const int64 *__restrict__ pixel,
                              const unsigned int *__restrict__ sources, const int64 *__restrict__ n_sources, uint64 salt,
                              int n, int stride)
{
    ELEMENT(n);
    uint64 z = uint64(pixel[at]) * 0x9E3779B97F4A7C15ull + salt;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    const int64 pick = int64((z ^ (z >> 31)) >> 33) % n_sources[at];
    counts[pixel[at]] = counts[sources[size_t(at) * stride + pick]];
}

#define REPAIR(name, Count)                                                                                          \
    extern "C" __global__ void name(Count *__restrict__ counts, const int64 *__restrict__ pixel,                     \
                                    const unsigned int *__restrict__ sources, const int64 *__restrict__ n_sources,   \
                                    uint64 salt, int n, int stride)                                                  \
    {                                                                                                                \
        repair<Count>(counts, pixel, sources, n_sources, salt, n, stride);                                           \
    }

REPAIR(repair_1, unsigned char)
REPAIR(repair_2, unsigned short)
REPAIR(repair_4, unsigned int)
REPAIR(repair_8, uint64)

// of each column of pixels within a row of blocks: number, Σ value, Σ value², Σ gain of good pixels, (4, row of blocks, x)
extern "C" __global__ void block_columns(const float *__restrict__ total, const float *__restrict__ gain,
                                         const unsigned char *__restrict__ bad, const int64 *__restrict__ y, int width,
                                         int first_row, double *__restrict__ out)
{
    ELEMENT(width);
    double n = 0, first = 0, second = 0, gains = 0;
    for (int64 i = y[first_row + blockIdx.z]; i < y[first_row + blockIdx.z + 1]; ++i) {
        const size_t pixel = size_t(i) * width + at;
        if (bad[pixel]) continue;
        const double factor = gain[pixel], value = total[pixel] * factor;
        n += 1;
        first += value;
        second += value * value;
        gains += factor;
    }
    const size_t plane = size_t(gridDim.z) * width, here = size_t(blockIdx.z) * width + at;
    out[here] = n;
    out[plane + here] = first;
    out[2 * plane + here] = second;
    out[3 * plane + here] = gains;
}

// level, variance per gain and number of good pixels (3, ky, kx) from the sums of columns; not a number where there is none
extern "C" __global__ void block(const double *__restrict__ columns, const int64 *__restrict__ x,
                                 const unsigned char *__restrict__ wanted, int width, int n_y, int n_x, int first_row,
                                 double *__restrict__ out)
{
    ELEMENT(n_x);
    const size_t here = size_t(first_row + blockIdx.z) * n_x + at, plane = size_t(n_y) * n_x;
    if (!wanted[here]) return;
    double sums[4] = {0, 0, 0, 0};
    for (int q = 0; q < 4; ++q) {
        const double *row = columns + (size_t(q) * gridDim.z + blockIdx.z) * width;
        for (int64 j = x[at]; j < x[at + 1]; ++j) sums[q] += row[j];
    }
    const double spread = sums[2] - sums[1] * sums[1] / sums[0];
    out[here] = sums[1] / sums[0];
    out[plane + here] = (spread > 0 ? spread : 0) / sums[3];
    out[2 * plane + here] = sums[0];
}

// median of n numbers, which come to stand in their order
__device__ inline double median(double *values, int n)
{
    for (int i = 1; i < n; ++i) {
        const double one = values[i];
        int j = i;
        for (; j > 0 && values[j - 1] > one; --j) values[j] = values[j - 1];
        values[j] = one;
    }
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

// how many standard deviations a pixel may exceed its level by; limits are tabulated for the logarithm of mean counts
__device__ inline double limit_of(double level, double variance, double threshold, const double *__restrict__ limits,
                                  int n_limits, double least, double most)
{
    if (level <= 0 || variance <= 0) return threshold;
    const double place = (log(level * level / variance) - log(least)) / (log(most) - log(least)) * (n_limits - 1);
    if (place >= n_limits - 1) return threshold;
    const double inside = place > 0 ? place : 0;
    const int left = int(inside);
    return limits[left] + (inside - left) * (limits[left + 1] - limits[left]);
}

// a thread goes down one column of a row of blocks
extern "C" __global__ void hot(const float *__restrict__ total, const float *__restrict__ gain,
                               const unsigned char *__restrict__ bad, const int64 *__restrict__ y,
                               const int64 *__restrict__ x, const unsigned char *__restrict__ wanted,
                               const double *__restrict__ level, const double *__restrict__ variance, double threshold,
                               const double *__restrict__ limits, int n_limits, double least, double most, int counts,
                               int height, int width, int n_x, int first_row, unsigned char *__restrict__ out)
{
    ELEMENT(width);
    const int row = first_row + blockIdx.z;
    int column = int(int64(at) * n_x / width);
    while (at >= x[column + 1]) ++column;
    const size_t mine = size_t(row) * n_x + column;
    const double mean = level[mine];
    if (!wanted[mine] || !(variance[mine] > 0)) return;
    for (int i = int(y[row]); i < y[row + 1]; ++i) {
        const size_t pixel = size_t(i) * width + at;
        double spread = variance[mine] * gain[pixel], excess = double(total[pixel]) * gain[pixel] - mean;
        if (bad[pixel] || spread <= 0 || excess <= threshold * sqrt(spread)) continue;
        double around[24], expected = mean;
        int n = 0;
        for (int di = -2; di <= 2; ++di) {
            for (int dj = -2; dj <= 2; ++dj) {
                const int ii = i + di, jj = at + dj;
                const bool here = (di || dj) && ii >= 0 && ii < height && jj >= 0 && jj < width;
                const size_t one = here ? size_t(ii) * width + jj : pixel;
                if (here && !bad[one]) around[n++] = double(total[one]) * gain[one];
            }
        }
        const double near = n ? median(around, n) : mean;
        if (near > mean) {
            if (counts && mean > 0) spread *= near / mean;
            excess -= near - mean;
            expected = near;
        }
        if (excess > limit_of(expected, spread, threshold, limits, n_limits, least, most) * sqrt(spread)) out[pixel] = 1;
    }
}

extern "C" __global__ void ctf(const double *__restrict__ x, const double *__restrict__ y,
                               const double *__restrict__ extra, double k4,
                               const double *__restrict__ per_particle, int n_pixels, float *__restrict__ out)
{
    ELEMENT(n_pixels);
    const double *mine = per_particle + 6 * blockIdx.z;
    const double u = x[at], v = y[at], u2 = u * u + v * v;
    const double gamma = mine[0] * u * u + mine[1] * v * v + mine[2] * u * v + k4 * u2 * u2 + mine[3] + extra[at];
    out[size_t(blockIdx.z) * n_pixels + at] = float(-mine[5] * exp(mine[4] * u2) * sin(gamma));
}

extern "C" __global__ void slice(const float2 *__restrict__ ft, int size, int size_x, double padding, double k_max,
                                 const double *__restrict__ to_map, const double *__restrict__ shift, int k,
                                 float2 *__restrict__ out)
{
    const int columns = k + 1, n_pixels = (2 * k + 1) * columns;
    ELEMENT(n_pixels);
    const int ky = at / columns - k, kx = at % columns;
    const double *m = to_map + 6 * blockIdx.z;
    double x = padding * (m[0] * kx + m[1] * ky);
    double y = padding * (m[2] * kx + m[3] * ky);
    double z = padding * (m[4] * kx + m[5] * ky);
    float2 value = make_float2(0.f, 0.f);
    const double limit2 = padding * k_max * padding * k_max * (1 + 1e-9);
    if (kx * kx + ky * ky <= k * k && x * x + y * y + z * z <= limit2) {
        const bool conjugate = x < 0;
        if (conjugate) {
            x = -x;
            y = -y;
            z = -z;
        }
        const int centre = (size - 1) / 2;
        const int x0 = int(floor(x)), y0 = int(floor(y)), z0 = int(floor(z));
        const float fx = float(x - x0), fy = float(y - y0), fz = float(z - z0);
        const int x1 = x0 + 1 < size_x ? x0 + 1 : size_x - 1;
        const int y1 = (y0 + 1 < centre ? y0 + 1 : centre) + centre, z1 = (z0 + 1 < centre ? z0 + 1 : centre) + centre;
        const float2 *row00 = ft + (size_t(z0 + centre) * size + (y0 + centre)) * size_x;
        const float2 *row01 = ft + (size_t(z0 + centre) * size + y1) * size_x;
        const float2 *row10 = ft + (size_t(z1) * size + (y0 + centre)) * size_x;
        const float2 *row11 = ft + (size_t(z1) * size + y1) * size_x;
        const float2 near_z = between(between(row00[x0], row00[x1], fx), between(row01[x0], row01[x1], fx), fy);
        const float2 far_z = between(between(row10[x0], row10[x1], fx), between(row11[x0], row11[x1], fx), fy);
        value = between(near_z, far_z, fz);
        if (conjugate) value.y = -value.y;
        const double *s = shift + 2 * blockIdx.z;
        value = times(value, phasor(-(s[0] * kx + s[1] * ky)));
    }
    out[size_t(blockIdx.z) * n_pixels + at] = value;
}

template <typename Count>
__device__ inline void cut(const Count *__restrict__ frame, const float *__restrict__ gain,
                           const int64 *__restrict__ corners, int height, int width, int box, float *__restrict__ out)
{
    ELEMENT(box * box);
    const int64 *corner = corners + 2 * blockIdx.z;
    const int x = clamped(corner[0] + at % box, width - 1), y = clamped(corner[1] + at / box, height - 1);
    const size_t pixel = size_t(y) * width + x;
    out[size_t(blockIdx.z) * box * box + at] = -float(frame[pixel]) * gain[pixel];
}

#define CUT_PATCHES(name, Count)                                                                                     \
    extern "C" __global__ void name(const Count *__restrict__ frame, const float *__restrict__ gain,                 \
                                    const int64 *__restrict__ corners, int height, int width, int box,               \
                                    float *__restrict__ out)                                                         \
    {                                                                                                                \
        cut<Count>(frame, gain, corners, height, width, box, out);                                                   \
    }

CUT_PATCHES(cut_patches_uint8, unsigned char)
CUT_PATCHES(cut_patches_int8, signed char)
CUT_PATCHES(cut_patches_uint16, unsigned short)
CUT_PATCHES(cut_patches_int16, short)
CUT_PATCHES(cut_patches_float32, float)

// position of a pixel among the centres of n equal cells along an axis; that of the last ones beyond them
__device__ inline double cell(int64 pixel, int size, int n)
{
    const double at = (pixel + 0.5) * n / size - 0.5;
    return at < 0 ? 0 : at > n - 1 ? n - 1 : at;
}

extern "C" __global__ void add_background(const float *__restrict__ coarse, int n_y, int n_x, int height, int width,
                                          const int64 *__restrict__ corners, int box, float *__restrict__ out)
{
    ELEMENT(box * box);
    const int64 *corner = corners + 2 * blockIdx.z;
    const double x = cell(corner[0] + at % box, width, n_x), y = cell(corner[1] + at / box, height, n_y);
    const int left = int(x), top = int(y), right = left + 1 < n_x ? left + 1 : n_x - 1;
    const float *above = coarse + top * n_x, *below = coarse + (top + 1 < n_y ? top + 1 : n_y - 1) * n_x;
    const float share_x = float(x - left), share_y = float(y - top);
    const float one = above[left] + share_x * (above[right] - above[left]);
    const float two = below[left] + share_x * (below[right] - below[left]);
    out[size_t(blockIdx.z) * box * box + at] += one + share_y * (two - one);
}

// the largest |value| of every share of a patch: thread ``at`` looks at each ``shares``-th value
extern "C" __global__ void largest(const float *__restrict__ values, int n, int shares, float *__restrict__ out)
{
    ELEMENT(shares);
    const float *patch = values + size_t(blockIdx.z) * n;
    float top = 0.f;
    for (int i = at; i < n; i += shares) top = fmaxf(top, fabsf(patch[i]));
    out[size_t(blockIdx.z) * shares + at] = top;
}

// what one step of 16-bit integers stands for in every patch, given the largest of its shares
extern "C" __global__ void steps(const float *__restrict__ top, int n_patches, int shares, float *__restrict__ out)
{
    ELEMENT(n_patches);
    float most = 0.f;
    for (int i = 0; i < shares; ++i) most = fmaxf(most, top[size_t(at) * shares + i]);
    out[at] = most > 0.f ? most / 32767.f : 1.f;
}

extern "C" __global__ void quantise(const float *__restrict__ values, const float *__restrict__ step, int n,
                                    short *__restrict__ out)
{
    ELEMENT(n);
    const size_t here = size_t(blockIdx.z) * n + at;
    out[here] = short(rintf(values[here] * (1.f / step[blockIdx.z])));
}

// |X|² summed over the frames of each particle
extern "C" __global__ void power(const short2 *__restrict__ stored, const float *__restrict__ scale, int n_frames,
                                 int n_pixels, float *__restrict__ out)
{
    ELEMENT(n_pixels);
    const size_t first = size_t(blockIdx.z) * n_frames;
    float sum = 0.f;
    for (int f = 0; f < n_frames; ++f) {
        const short2 x = stored[(first + f) * n_pixels + at];
        const float a = x.x, b = x.y, s = scale[first + f];
        sum += s * s * (a * a + b * b);
    }
    out[size_t(blockIdx.z) * n_pixels + at] = sum;
}

// sums over shells: ``order`` has the pixels of shell r from ``first[r]`` to ``first[r + 1]``
extern "C" __global__ void shell_sum(const float *__restrict__ values, const double *__restrict__ weight,
                                     const int64 *__restrict__ order, const int64 *__restrict__ first, int n_pixels,
                                     int n_shells, double *__restrict__ out)
{
    ELEMENT(n_shells);
    const float *row = values + size_t(blockIdx.z) * n_pixels;
    double sum = 0;
    for (int64 i = first[at]; i < first[at + 1]; ++i) sum += weight[order[i]] * row[order[i]];
    out[size_t(blockIdx.z) * n_shells + at] += sum;
}

// cross terms folded along ky (2, k + 1, particle, frame, 2, k + 1): of C(ky) + C(-ky) and of i (C(ky) - C(-ky))
extern "C" __global__ void cross(const short2 *__restrict__ stored, const float *__restrict__ scale,
                                 const float2 *__restrict__ predicted, const float *__restrict__ weight, int box,
                                 int big, int k, int n_shells, float *__restrict__ out)
{
    const int columns = k + 1;
    ELEMENT(columns * columns);
    const int ky = at / columns, kx = at % columns;
    const size_t patch = size_t(blockIdx.z) * gridDim.y + blockIdx.y, n_patches = size_t(gridDim.z) * gridDim.y;
    const short2 *spectrum = stored + patch * box * (box / 2 + 1) + kx;
    const float2 *view = predicted + (size_t(blockIdx.z) * (2 * big + 1) + big) * (big + 1) + kx;
    const short2 x = spectrum[ky * (box / 2 + 1)], y = spectrum[(box - ky) % box * (box / 2 + 1)];
    const float2 v = view[ky * (big + 1)], u = view[-ky * (big + 1)];
    const float w = weight[patch * n_shells + int(sqrtf(float(ky * ky + kx * kx)))] * scale[patch] * (ky ? 1.f : 0.5f);
    const float2 up = make_float2(x.x * v.x + x.y * v.y, x.y * v.x - x.x * v.y);
    const float2 down = make_float2(y.x * u.x + y.y * u.y, y.y * u.x - y.x * u.y);
    float *even = out + (ky * n_patches + patch) * 2 * columns + kx, *odd = even + columns * n_patches * 2 * columns;
    even[0] = (up.x + down.x) * w;
    even[columns] = (up.y + down.y) * w;
    odd[0] = (down.y - up.y) * w;
    odd[columns] = (up.x - down.x) * w;
}

// what each pixel of the predicted band adds to the three sums of a frame: (3, frame, pixel), over all particles
extern "C" __global__ void fcc(const short2 *__restrict__ stored, const float *__restrict__ scale,
                               const float2 *__restrict__ predicted, const double *__restrict__ shift_px,
                               const float *__restrict__ whitening, int n_particles, int box, int big, int first_row,
                               int rows, int columns, int n_white, float *__restrict__ out)
{
    ELEMENT(rows * columns);
    const int ky = at / columns + first_row, kx = at % columns, f = blockIdx.y, n_frames = gridDim.y;
    const int r = int(sqrtf(float(ky * ky + kx * kx)));
    const float g = r < n_white ? whitening[r] : 0.f;
    double product = 0, movie = 0, view = 0;
    for (int p = 0; r < n_white && p < n_particles; ++p) {
        const size_t patch = size_t(p) * n_frames + f;
        const short2 x = stored[(patch * box + (ky + box) % box) * (box / 2 + 1) + kx];
        const float2 v = predicted[(size_t(p) * (2 * big + 1) + ky + big) * (big + 1) + kx];
        const float s = g * scale[patch];
        const float2 seen = make_float2(x.x * s, x.y * s);
        const float2 moved = times(seen, phasor((shift_px[2 * patch] * kx + shift_px[2 * patch + 1] * ky) / box));
        product += moved.x * v.x + moved.y * v.y;
        movie += seen.x * seen.x + seen.y * seen.y;
        view += v.x * v.x + v.y * v.y;
    }
    const size_t frame = size_t(n_frames) * rows * columns, here = size_t(f) * rows * columns + at;
    out[here] = float(product);
    out[frame + here] = float(movie);
    out[2 * frame + here] = float(view);
}

extern "C" __global__ void recombine(const short2 *__restrict__ stored, const float *__restrict__ scale,
                                     const double *__restrict__ shift_px, const float *__restrict__ weight,
                                     int n_frames, int box, int box_out, float2 *__restrict__ out)
{
    const int columns = box_out / 2 + 1, n_pixels = box_out * columns;
    ELEMENT(n_pixels);
    const int i = at / columns, kx = at % columns, ky = i < box_out - box_out / 2 ? i : i - box_out;
    const size_t source = size_t((ky + box) % box) * (box / 2 + 1) + kx;
    float2 sum = out[size_t(blockIdx.z) * n_pixels + at];
    for (int f = 0; f < n_frames; ++f) {
        const size_t patch = size_t(blockIdx.z) * n_frames + f;
        const short2 x = stored[patch * box * (box / 2 + 1) + source];
        const float s = scale[patch] * weight[size_t(f) * n_pixels + at];
        const float2 turn = phasor((shift_px[2 * patch] * kx + shift_px[2 * patch + 1] * ky) / box);
        const float2 moved = times(make_float2(x.x * s, x.y * s), turn);
        sum.x += moved.x;
        sum.y += moved.y;
    }
    out[size_t(blockIdx.z) * n_pixels + at] = sum;
}
