// Whole frames weighted and sampled where the specimen was: the twins of kernels_dewarp.py, one thread to an element of the
// result. x of the grid counts columns, z rows from ``first`` on. Arrays are C-contiguous.

typedef long long int64;

// this thread's column; threads beyond the last have nothing to do
#define COLUMN(n)                                                \
    const int at = int(blockIdx.x * blockDim.x + threadIdx.x);   \
    if (at >= (n)) return

__device__ inline float2 times(float2 a, float2 b)
{
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// index within 0 to n - 1 of a sample of the image reflected at its edges
__device__ inline int mirrored(int64 i, int n)
{
    while (i < 0 || i >= n) i = i < 0 ? -1 - i : 2 * int64(n) - 1 - i;
    return int(i);
}

// cell [i, i + 1) of n samples; one beyond them is reflected at the first or last sample, and t counted from its other side
__device__ inline int reflected(int i, int n, float &t)
{
    const bool outside = i < 0 || i > n - 2;
    if (outside) {
        i = i < 0 ? -1 - i : 2 * n - 3 - i;
        t = 1.f - t;
    }
    return i < 0 ? 0 : i > n - 2 ? n - 2 : i;
}

__device__ inline int around(int i, int n) { return i < 0 ? i + n : i >= n ? i - n : i; }

// blend six samples with the weights of a quintic B-spline, t in [0, 1) from the third
__device__ inline float blend(float t, const float *c)
{
    const float s = 1.f - t, t2 = t * t, s2 = s * s;
    const float w1 = 1.f + s * (5.f + s * (10.f + s * (10.f + s * (5.f - 5.f * s))));
    const float w4 = 1.f + t * (5.f + t * (10.f + t * (10.f + t * (5.f - 5.f * t))));
    const float w2 = 66.f + t2 * (t2 * (30.f - 10.f * t) - 60.f), w3 = 66.f + s2 * (s2 * (30.f - 10.f * s) - 60.f);
    return (s2 * s2 * s * c[0] + w1 * c[1] + w2 * c[2] + w3 * c[3] + w4 * c[4] + t2 * t2 * t * c[5]) * float(1. / 120);
}

template <typename Count>
__device__ inline void shifted(const Count *__restrict__ frame, const float *__restrict__ gain,
                               const float *__restrict__ background, const float *__restrict__ level, int64 shift_y,
                               int64 shift_x, int height, int width, int has_gain, int has_background, int first,
                               float *__restrict__ out)
{
    COLUMN(width);
    const int y = first + blockIdx.z;
    const size_t from = size_t(mirrored(y + shift_y, height)) * width + mirrored(at + shift_x, width);
    float value = float(frame[from]);
    if (has_gain) value *= gain[from];
    if (has_background) value -= *level * background[from];
    out[size_t(y) * width + at] = value;
}

#define SHIFTED_FRAME(name, Count)                                                                                    \
    extern "C" __global__ void name(const Count *__restrict__ frame, const float *__restrict__ gain,                  \
                                    const float *__restrict__ background, const float *__restrict__ level,            \
                                    int64 shift_y, int64 shift_x, int height, int width, int has_gain,                \
                                    int has_background, int first, float *__restrict__ out)                           \
    {                                                                                                                 \
        shifted<Count>(frame, gain, background, level, shift_y, shift_x, height, width, has_gain, has_background,     \
                       first, out);                                                                                   \
    }

SHIFTED_FRAME(shifted_frame_uint8, unsigned char)
SHIFTED_FRAME(shifted_frame_int8, signed char)
SHIFTED_FRAME(shifted_frame_uint16, unsigned short)
SHIFTED_FRAME(shifted_frame_int16, short)
SHIFTED_FRAME(shifted_frame_float32, float)

// a cropped transform times radial weight and phase ramps; ``out`` may be the transform itself
extern "C" __global__ void weigh(const float2 *spectrum, int height, int columns, int width,
                                 const float *__restrict__ weight, int n_radii, double step,
                                 const float2 *__restrict__ ramp_y, const float2 *__restrict__ ramp_x, int n_rows,
                                 int n_columns, int first, int add, float2 *out)
{
    COLUMN(n_columns);
    const int i = first + blockIdx.z, ky = 2 * i < n_rows ? i : i - n_rows;
    const double y = ky / (height * step), x = at / (width * step), radius = sqrt(y * y + x * x);
    const int low = int(radius) < n_radii - 2 ? int(radius) : n_radii - 2;
    const float w = weight[low] + (weight[low + 1] - weight[low]) * float(radius - low);
    const float2 one = times(spectrum[size_t((ky + height) % height) * columns + at], times(ramp_y[i], ramp_x[at]));
    float2 *here = out + size_t(i) * n_columns + at;
    *here = make_float2(w * one.x + (add ? here->x : 0.f), w * one.y + (add ? here->y : 0.f));
}

// displacements of a row of pixels, linear between the rows of a grid of nodes (gy, gx, 2)
struct Row {
    const float *above, *below;
    float share;
    int n_nodes, step;

    __device__ float node(int g, int axis) const
    {
        return (1.f - share) * above[2 * g + axis] + share * below[2 * g + axis];
    }
    // displacement y at the node's column, of the pixel that moved there
    __device__ float at_origin(int g) const
    {
        const float u = g - node(g, 0) / step, inside = u > 0.f ? u < n_nodes - 1 ? u : n_nodes - 1 : 0.f;
        const int low = int(inside) < n_nodes - 2 ? int(inside) : n_nodes - 2;
        return node(low, 1) + (inside - low) * (node(low + 1, 1) - node(low, 1));
    }
};

__device__ inline Row row_of(const float *__restrict__ grid, int n_rows, int n_nodes, int step, int y)
{
    const int gy = y / step < n_rows - 2 ? y / step : n_rows - 2;
    const float *above = grid + size_t(gy) * n_nodes * 2;
    return {above, above + 2 * n_nodes, float(y - gy * step) / step, n_nodes, step};
}

// along columns: the image sampled in y at the pixels that those of the row moved to; ``out`` begins with row ``first``
extern "C" __global__ void warp_columns(const float *__restrict__ coefficients, const float *__restrict__ grid,
                                        int n_rows, int n_nodes, int step, int height, int width, int first,
                                        float *__restrict__ out)
{
    COLUMN(width);
    const int y = first + blockIdx.z, g = at / step < n_nodes - 2 ? at / step : n_nodes - 2;
    const Row row = row_of(grid, n_rows, n_nodes, step, y);
    const float begin = row.at_origin(g);
    const float moved = begin + (row.at_origin(g + 1) - begin) * (float(at - g * step) / step);
    const float whole = floorf(moved);
    float t = moved - whole, six[6];
    const int cell = reflected(y + int(whole), height, t);
    for (int i = 0; i < 6; ++i) six[i] = coefficients[size_t(around(cell + i - 2, height)) * width + at];
    out[size_t(blockIdx.z) * width + at] = blend(t, six);
}

// along rows: add what ``columns`` holds where each pixel was
extern "C" __global__ void warp_rows(const float *__restrict__ columns, const float *__restrict__ grid, int n_rows,
                                     int n_nodes, int step, int width, int first, float *__restrict__ out)
{
    COLUMN(width);
    const int y = first + blockIdx.z, g = at / step < n_nodes - 2 ? at / step : n_nodes - 2;
    const Row row = row_of(grid, n_rows, n_nodes, step, y);
    const float begin = row.node(g, 0), moved = begin + (row.node(g + 1, 0) - begin) * (float(at - g * step) / step);
    const float whole = floorf(moved);
    float t = moved - whole, six[6];
    const int cell = reflected(at + int(whole), width, t);
    for (int i = 0; i < 6; ++i) six[i] = columns[size_t(blockIdx.z) * width + around(cell + i - 2, width)];
    out[size_t(y) * width + at] += blend(t, six);
}
