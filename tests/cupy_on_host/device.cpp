// The parts of CUDA that CuPy calls, on the host: memory of devices that are none, kernels compiled by g++ (kernel.h),
// transforms and matrix products by their definitions. What a GPU would refuse, or do unpredictably, is refused here.
//
// HOST_GPUS: how many devices there are (1); HOST_GPU_BYTES: memory of each (8e9). What is asked of them is counted.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <regex>
#include <sstream>
#include <string>
#include <vector>
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

std::mutex lock;
std::map<uintptr_t, std::pair<size_t, int>> blocks; // of device memory: size and device
std::map<int, size_t> used;
thread_local int device = 0; // each thread begins on the first one

std::map<std::string, long> asked; // how often, by name
void count(const std::string &what) {
    std::lock_guard<std::mutex> guard(lock);
    ++asked[what];
}

size_t setting(const char *name, size_t otherwise) {
    const char *given = getenv(name);
    return given ? strtoull(given, nullptr, 10) : otherwise;
}
int devices() { return int(setting("HOST_GPUS", 1)); }
size_t memory() { return setting("HOST_GPU_BYTES", 8000000000); }
int refused(const char *what) {
    fprintf(stderr, "refused: %s\n", what);
    return 1;
}

int device_of(const void *address) { // -1: the host
    std::lock_guard<std::mutex> guard(lock);
    auto after = blocks.upper_bound(uintptr_t(address));
    if (after == blocks.begin()) return -1;
    auto block = std::prev(after);
    return uintptr_t(address) < block->first + block->second.first ? block->second.second : -1;
}

} // namespace

extern "C" {

// what was asked of all devices since the last call: a line for each kind with its count
const char *host_asked() {
    static std::string text;
    std::lock_guard<std::mutex> guard(lock);
    text.clear();
    for (const auto &one : asked) text += std::to_string(one.second) + " " + one.first + "\n";
    asked.clear();
    return text.c_str();
}

// runtime

int cudaDriverGetVersion(int *version) {
    *version = 12090;
    return 0;
}
int cudaRuntimeGetVersion(int *version) {
    *version = 12090;
    return 0;
}
const char *cudaGetErrorName(int error) {
    return error == 2 ? "cudaErrorMemoryAllocation" : error == 101 ? "cudaErrorInvalidDevice" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int error) {
    return error == 2 ? "out of memory" : error == 101 ? "invalid device ordinal" : "refused";
}
int cudaGetDevice(int *number) {
    *number = device;
    return 0;
}
int cudaSetDevice(int number) {
    if (number < 0 || number >= devices()) return 101;
    device = number;
    return 0;
}
int cudaGetDeviceCount(int *count) {
    *count = devices();
    return *count ? 0 : 100;
}
int cudaDeviceGetAttribute(int *value, int which, int) { // maximum threads, warp, processors, compute capability 9.0
    *value = which == 1 ? 1024 : which == 10 ? 32 : which == 16 ? 4 : which == 75 ? 9 : which == 76 ? 0 : 1;
    return 0;
}
int cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return 0;
}
int cudaMalloc(void **address, size_t size) {
    std::lock_guard<std::mutex> guard(lock);
    if (used[device] + size > memory()) return 2;
    *address = memset(aligned_alloc(512, (size + 511) / 512 * 512), 0xff, size); // NaN, if nobody fills it
    blocks[uintptr_t(*address)] = {size, device};
    used[device] += size;
    return 0;
}
int cudaFree(void *address) {
    std::lock_guard<std::mutex> guard(lock);
    auto block = blocks.find(uintptr_t(address));
    if (block == blocks.end()) return address ? refused("free of what was not allocated") : 0;
    used[block->second.second] -= block->second.first;
    memset(address, 0xff, block->second.first);
    blocks.erase(block);
    free(address);
    return 0;
}
int cudaHostAlloc(void **address, size_t size, unsigned) {
    *address = malloc(size);
    return 0;
}
int cudaFreeHost(void *address) {
    free(address);
    return 0;
}
int cudaMemGetInfo(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> guard(lock);
    *total = memory();
    *free = *total - used[device];
    return 0;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    const bool there = device_of(to) >= 0, here = device_of(from) >= 0;
    if (size && kind != 4 && (there != (kind == 1 || kind == 3) || here != (kind == 2 || kind == 3)))
        return refused("copy in the wrong direction");
    count(there && here ? "copy on devices" : there ? "upload" : "download");
    memmove(to, from, size);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *) {
    return cudaMemcpy(to, from, size, kind);
}
int cudaMemcpyPeer(void *to, int, const void *from, int, size_t size) { return cudaMemcpy(to, from, size, 3); }
int cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t size, void *) {
    return cudaMemcpy(to, from, size, 3);
}
int cudaMemset(void *to, int value, size_t size) {
    if (size && device_of(to) < 0) return refused("memset of the host's memory");
    memset(to, value, size);
    count("memset");
    return 0;
}
int cudaMemsetAsync(void *to, int value, size_t size, void *) { return cudaMemset(to, value, size); }
int cudaStreamCreate(void **stream) {
    *stream = &lock;
    return 0;
}
int cudaStreamCreateWithFlags(void **stream, unsigned) {
    *stream = &lock;
    return 0;
}
int cudaStreamIsCapturing(void *, int *status) {
    *status = 0;
    return 0;
}
int cudaEventCreate(void **event) {
    *event = &lock;
    return 0;
}
int cudaEventCreateWithFlags(void **event, unsigned) {
    *event = &lock;
    return 0;
}
int cudaEventElapsedTime(float *ms, void *, void *) {
    *ms = 0;
    return 0;
}

// driver

int cuGetErrorName(int error, const char **name) {
    *name = error == 1 ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_NOT_FOUND";
    return 0;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
int cuCtxGetCurrent(void **context) {
    *context = (void *)(intptr_t)(device + 1);
    return 0;
}
int cuModuleLoadData(void **module, const void *image) {
    *module = dlopen((const char *)image, RTLD_NOW | RTLD_LOCAL);
    return *module ? 0 : 500;
}
int cuModuleUnload(void *) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = dlsym(module, (std::string("launch_") + name).c_str());
    return *function ? 0 : 500;
}
int cuFuncGetAttribute(int *value, int which, void *) {
    *value = which == 0 ? 1024 : 0;
    return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned, void *, void **values, void **) {
    if (gx > 2147483647u || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return refused("grid or block too large");
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    Dl_info info;
    if (dladdr(function, &info) && info.dli_sname) count(std::string("kernel ") + (info.dli_sname + strlen("launch_")));
    ((void (*)(const unsigned *, const unsigned *, void **))function)(grid, block, values);
    return 0;
}

// compiler: what it makes is the path of a library

struct Program {
    std::string source, made, log;
};
int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 9;
    return 0;
}
const char *nvrtcGetErrorString(int) { return "not compiled"; }
int nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char **, const char **) {
    *program = new Program{source, "", ""};
    return 0;
}
int nvrtcDestroyProgram(Program **program) {
    delete *program;
    return 0;
}
int nvrtcCompileProgram(Program *program, int n, const char **options) {
    if (program->source.empty()) {
        program->made = "// host";
        return 0;
    } // CuPy asks for the compiler's version so
    const std::string home = getenv("CUPY_ON_HOST");
    std::string flags = " -std=c++17 -I" + home + "/include";
    int standards = 0;
    for (int i = 0; i < n; ++i) {
        const std::string option = options[i];
        if (option.find("-std=") != std::string::npos && ++standards > 1) {
            program->log = "the standard is given twice";
            return 5;
        }
        const bool headers = option.size() > 14 && option.compare(option.size() - 14, 14, "/_core/include") == 0; // CuPy's
        if (headers || option.rfind("-D", 0) == 0)
            flags += " '" + option + "'";
    }
    char key[20];
    snprintf(key, sizeof key, "%016zx", std::hash<std::string>()(program->source + flags));
    const std::string library = home + "/kernels/" + key + ".so", mine = home + "/kernels/" + key + "." +
                                                                         std::to_string(getpid()) + "." +
                                                                         std::to_string(uintptr_t(program));
    struct stat status;
    if (stat(library.c_str(), &status)) {
        const bool together =
            program->source.find("__sync") != std::string::npos || program->source.find("__shfl") != std::string::npos;
        std::ofstream(mine + ".e.cpp") << std::regex_replace(program->source, std::regex("#\\s*include[^\n]*"), "");
        std::ofstream(mine + ".cpp") << "#include \"kernel.h\"\n" << program->source;
        if (system(("g++ -E -P -w" + flags + " " + mine + ".e.cpp -o " + mine + ".ii 2>" + mine + ".log").c_str()))
            return 6;
        std::ifstream expanded(mine + ".ii");
        const std::string text{std::istreambuf_iterator<char>(expanded), {}};
        const std::regex kernel(
            "extern\\s+\"C\"\\s+__global__\\s+void\\s+(?:__launch_bounds__\\s*\\([^)]*\\)\\s*)?(\\w+)\\s*\\(");
        std::ofstream launchers(mine + ".cpp", std::ios::app);
        for (std::sregex_iterator at(text.begin(), text.end(), kernel), end; at != end; ++at)
            launchers << "\nextern \"C\" void launch_" << (*at)[1]
                      << "(const unsigned *g, const unsigned *b, void **v) { run(" << (*at)[1]
                      << ", g, b, v, " << together << "); }";
        launchers << "\n";
        launchers.close();
        const bool failed = system(("g++ -O1 -mf16c -w -shared -fPIC -fpermissive" + flags + " " + mine + ".cpp -o " +
                                    mine + ".so 2>" + mine + ".log && mv " + mine + ".so " + library)
                                       .c_str());
        std::ifstream log(mine + ".log");
        program->log.assign(std::istreambuf_iterator<char>(log), {});
        for (const char *end : {".cpp", ".e.cpp", ".ii", ".log"}) unlink((mine + end).c_str());
        if (failed) return 6;
    }
    program->made = library;
    return 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = program->made.size() + 1;
    return 0;
}
int nvrtcGetCUBIN(Program *program, char *out) {
    memcpy(out, program->made.c_str(), program->made.size() + 1);
    return 0;
}
int nvrtcGetPTXSize(Program *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(Program *program, char *out) { return nvrtcGetCUBIN(program, out); }
int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->log.size() + 1;
    return 0;
}
int nvrtcGetProgramLog(Program *program, char *out) {
    memcpy(out, program->log.c_str(), program->log.size() + 1);
    return 0;
}

// sorting

int host_argsort(int type, size_t *order, const void *keys, const ptrdiff_t *shape, int dimensions) {
    if (dimensions != 1 || type != 6) {
        refused("argsort of what is no row of int64");
        abort();
    }
    const int64_t *key = (const int64_t *)keys;
    for (ptrdiff_t i = 0; i < *shape; ++i) order[i] = i;
    std::stable_sort(order, order + *shape, [=](size_t a, size_t b) { return key[a] < key[b]; });
    return 0;
}

} // extern "C"

// products of matrices, by columns as in Fortran

namespace {

typedef std::complex<float> C;
typedef std::complex<double> Z;
template <class T> T conjugate(T a) { return a; }
template <class T> std::complex<T> conjugate(std::complex<T> a) { return std::conj(a); }

struct Product {
    int ta, tb, m, n, k, lda, ldb, ldc;
    const void *alpha, *beta;
};

template <class T> void multiply(const Product &p, const T *a, const T *b, T *c) {
    if (device_of(a) < 0 || device_of(b) < 0 || device_of(c) < 0) {
        refused("product of matrices on the host");
        abort();
    }
    if (p.lda < (p.ta ? p.k : p.m) || p.ldb < (p.tb ? p.n : p.k) || p.ldc < p.m) {
        refused("leading dimension");
        abort();
    }
    const T alpha = *(const T *)p.alpha, beta = *(const T *)p.beta;
    auto entry = [](const T *matrix, int transposed, size_t i, size_t j, size_t ld) {
        const T value = transposed ? matrix[j + i * ld] : matrix[i + j * ld];
        return transposed == 2 ? conjugate(value) : value;
    };
    for (int j = 0; j < p.n; ++j)
        for (int i = 0; i < p.m; ++i) {
            T sum(0);
            for (int l = 0; l < p.k; ++l) sum += entry(a, p.ta, i, l, p.lda) * entry(b, p.tb, l, j, p.ldb);
            T &out = c[i + size_t(j) * p.ldc];
            out = alpha * sum + (beta == T(0) ? T(0) : beta * out);
        }
}

template <class Work> void of_type(int type, Work work) { // cudaDataType
    switch (type) {
    case 0:
        return work(float());
    case 1:
        return work(double());
    case 4:
        return work(C());
    case 5:
        return work(Z());
    }
    refused("type of a product of matrices");
    abort();
}

int strided(int type, const Product &p, const void *a, long long sa, const void *b, long long sb, void *c, long long sc,
            int batch) {
    count("product of matrices");
    of_type(type, [&](auto zero) {
        typedef decltype(zero) T;
        for (int i = 0; i < batch; ++i) multiply(p, (const T *)a + i * sa, (const T *)b + i * sb, (T *)c + i * sc);
    });
    return 0;
}

template <class T> int by_pointers(const Product &p, const T **a, const T **b, T **c, int batch) {
    if (device_of(a) < 0 || device_of(b) < 0 || device_of(c) < 0) {
        refused("pointers of a batch on the host");
        abort();
    }
    count("product of matrices");
    for (int i = 0; i < batch; ++i) multiply(p, a[i], b[i], c[i]);
    return 0;
}

} // namespace

extern "C" {

int cublasCreate(void **handle) {
    *handle = &lock;
    return 0;
}
int cublasGetVersion(void *, int *version) {
    *version = 120900;
    return 0;
}
int cublasGetMathMode(void *, int *mode) {
    *mode = 0;
    return 0;
}
int cublasGetStream(void *, void **stream) {
    *stream = nullptr;
    return 0;
}
int cublasGemmEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type, int lda,
                 const void *b, int, int ldb, const void *beta, void *c, int, int ldc, int, int) {
    return strided(type, {ta, tb, m, n, k, lda, ldb, ldc, alpha, beta}, a, 0, b, 0, c, 0, 1);
}
int cublasGemmEx_v11(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type, int lda,
                     const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute,
                     int algorithm) {
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, a, type, lda, b, type_b, ldb, beta, c, type_c, ldc, compute,
                        algorithm);
}
int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type,
                               int lda, long long sa, const void *b, int, int ldb, long long sb, const void *beta,
                               void *c, int, int ldc, long long sc, int batch, int, int) {
    return strided(type, {ta, tb, m, n, k, lda, ldb, ldc, alpha, beta}, a, sa, b, sb, c, sc, batch);
}
#define BATCHED(letter, T)                                                                                             \
    int cublas##letter##gemmBatched(void *, int ta, int tb, int m, int n, int k, const T *alpha, const T **a, int lda, \
                                    const T **b, int ldb, const T *beta, T **c, int ldc, int batch) {                  \
        return by_pointers<T>({ta, tb, m, n, k, lda, ldb, ldc, alpha, beta}, a, b, c, batch);                          \
    }
BATCHED(S, float) BATCHED(D, double) BATCHED(C, C) BATCHED(Z, Z)

} // extern "C"

// transforms, in double precision

namespace {

struct Plan {
    int rank, n[3], type, batch;
};
std::map<int, Plan> plans;
int next_plan = 1;
enum { COMPLEX = 9, FORWARD_REAL = 10, BACK_TO_REAL = 12 }; // last digits of cufftType

void transform(std::vector<Z> &line, int sign) {
    const int n = int(line.size());
    static thread_local std::map<int, std::vector<Z>> roots;
    std::vector<Z> &root = roots[n];
    for (int i = int(root.size()); i < n; ++i) root.push_back(std::polar(1.0, 2 * M_PI * i / n));
    std::vector<Z> out(n);
    for (int k = 0; k < n; ++k) {
        Z sum = 0;
        for (int i = 0; i < n; ++i)
            sum += line[i] * (sign < 0 ? std::conj(root[size_t(i) * k % n]) : root[size_t(i) * k % n]);
        out[k] = sum;
    }
    line.swap(out);
}

template <class T> int execute(int handle, const void *in, void *out, int sign) {
    typedef std::complex<T> Number;
    lock.lock();
    const bool known = plans.count(handle);
    const Plan plan = known ? plans[handle] : Plan{};
    lock.unlock();
    count("transform");
    if (!known || device_of(in) < 0 || device_of(out) < 0)
        return 1 + refused("transform without a plan, or of the host's memory");
    const int kind = plan.type & 15, last = plan.n[plan.rank - 1], half = last / 2 + 1,
              width = kind == COMPLEX ? last : half;
    const int rows = plan.rank == 2 ? plan.n[0] : 1;
    if (plan.rank > 2) return 1 + refused("transform of three dimensions");
    std::vector<Z> all(size_t(rows) * width), line;
    auto along_y = [&] {
        for (int j = 0; rows > 1 && j < width; ++j) {
            line.resize(rows);
            for (int i = 0; i < rows; ++i) line[i] = all[size_t(i) * width + j];
            transform(line, sign);
            for (int i = 0; i < rows; ++i) all[size_t(i) * width + j] = line[i];
        }
    };
    for (int b = 0; b < plan.batch; ++b) {
        if (kind == BACK_TO_REAL) {
            Number *from = (Number *)in + size_t(b) * rows * half;
            T *to = (T *)out + size_t(b) * rows * last;
            std::copy(from, from + size_t(rows) * half, all.begin());
            std::fill_n(from, in == out ? 0 : size_t(rows) * half,
                        Number(NAN, NAN)); // cuFFT may overwrite what it is given
            along_y();
            for (int i = 0; i < rows; ++i) {
                Z *row = &all[size_t(i) * half];
                double most = 0;
                for (int j = 0; j < half; ++j) most = std::max(most, std::abs(row[j]));
                // what cuFFT makes of imaginary parts that cannot be is left open
                const bool open = std::abs(row[0].imag()) > 1e-5 * most ||
                                  (last % 2 == 0 && std::abs(row[half - 1].imag()) > 1e-5 * most);
                line.assign(row, row + half);
                for (int j = half; j < last; ++j) line.push_back(std::conj(row[last - j]));
                transform(line, 1);
                for (int j = 0; j < last; ++j) to[size_t(i) * last + j] = open ? T(NAN) : T(line[j].real());
            }
            continue;
        }
        for (int i = 0; i < rows; ++i) {
            const size_t start = (size_t(b) * rows + i) * last;
            if (kind == COMPLEX)
                line.assign((const Number *)in + start, (const Number *)in + start + last);
            else
                line.assign((const T *)in + start, (const T *)in + start + last);
            transform(line, sign);
            std::copy(line.begin(), line.begin() + width, all.begin() + size_t(i) * width);
        }
        along_y();
        std::transform(all.begin(), all.end(), (Number *)out + size_t(b) * rows * width, [](Z a) { return Number(a); });
    }
    return 0;
}

} // namespace

extern "C" {

int cufftCreate(int *plan) {
    std::lock_guard<std::mutex> guard(lock);
    *plan = next_plan++;
    return 0;
}
int cufftDestroy(int plan) {
    std::lock_guard<std::mutex> guard(lock);
    plans.erase(plan);
    return 0;
}
int cufftMakePlanMany(int plan, int rank, int *n, int *, int stride_in, int, int *, int stride_out, int, int type,
                      int batch, size_t *work) {
    if (stride_in > 1 || stride_out > 1) return 13 + refused("transform of numbers that do not follow each other");
    Plan made{rank, {1, 1, 1}, type, batch};
    std::copy(n, n + rank, made.n);
    std::lock_guard<std::mutex> guard(lock);
    plans[plan] = made;
    *work = 4096;
    return 0;
}
int cufftMakePlan1d(int plan, int n, int type, int batch, size_t *work) {
    return cufftMakePlanMany(plan, 1, &n, nullptr, 1, 0, nullptr, 1, 0, type, batch, work);
}
int cufftExecC2C(int plan, void *in, void *out, int sign) { return execute<float>(plan, in, out, sign); }
int cufftExecR2C(int plan, void *in, void *out) { return execute<float>(plan, in, out, -1); }
int cufftExecC2R(int plan, void *in, void *out) { return execute<float>(plan, in, out, 1); }
int cufftExecZ2Z(int plan, void *in, void *out, int sign) { return execute<double>(plan, in, out, sign); }
int cufftExecD2Z(int plan, void *in, void *out) { return execute<double>(plan, in, out, -1); }
int cufftExecZ2D(int plan, void *in, void *out) { return execute<double>(plan, in, out, 1); }

} // extern "C"
