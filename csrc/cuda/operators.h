// The operators of decode_sm90.cu, which includes this at its end: checks, the problem, the launch, and packing.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "checks.h"
#include "pack.h"
#include "ptx.h"

namespace liif::sm90 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_cuda(cudaError_t error, const char* what) {
    if (error != cudaSuccess) static_cast<void>(cudaGetLastError());  // or the next check reports it again
    STD_TORCH_CHECK(error == cudaSuccess, "liif_fast: ", what, ": ", cudaGetErrorString(error));
}

// PyTorch's current stream. Its function is in libtorch_cuda, which a PyTorch without CUDA lacks. It is looked up in
// the library that PyTorch has loaded, so that this extension can be built against and loaded into either.
cudaStream_t current_stream(int32_t device) {
    using Get = int32_t (*)(int32_t, void**);
    static const Get get = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(get != nullptr, "liif_fast: this PyTorch has no CUDA");
    void* stream = nullptr;
    STD_TORCH_CHECK(get(device, &stream) == 0, "liif_fast: PyTorch's current stream cannot be had");
    return static_cast<cudaStream_t>(stream);
}

int to_int(int64_t value) {
    STD_TORCH_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(),
                    "liif_fast: a side is longer than 2^31 - 1");
    return static_cast<int>(value);
}

bool is_bfloat(const Tensor& p) {
    STD_TORCH_CHECK(p.scalar_type() == ScalarType::Half || p.scalar_type() == ScalarType::BFloat16,
                    "liif_fast: p must be float16 or bfloat16");
    return p.scalar_type() == ScalarType::BFloat16;
}

void check_float(const Tensor& t, const Tensor& p, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.get_device() == p.get_device(), "liif_fast: ", name,
                    " must be float32, on the device of p");
}

// The part shared by decode and render. If p holds only a part of the map, `place` gives the map's height and width,
// and p's top and left.
Problem start_problem(const Tensor& p, const std::optional<Tensor>& cell, const Tensor& packed, int64_t out_dim,
                      bool ensemble, const int64_t (&place)[4]) {
    STD_TORCH_CHECK(p.dim() == 4 && p.size(3) == kHidden && p.is_contiguous() &&
                        reinterpret_cast<uintptr_t>(p.const_data_ptr()) % 16 == 0,
                    "liif_fast: p must be [B, h, w, 256], contiguous, at a multiple of 16 bytes");
    STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                        packed.get_device() == p.get_device() && packed.numel() > kTableBytes &&
                        (packed.numel() - kTableBytes) % kProductBytes == 0 &&
                        reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0,
                    "liif_fast: packed must be the result of pack_sm90, on the device of p");
    STD_TORCH_CHECK(out_dim >= 1 && out_dim <= kMaxOut, "liif_fast: out_dim must be 1 to 4");
    STD_TORCH_CHECK(
        place[2] >= 0 && place[3] >= 0 && place[2] <= place[0] - p.size(1) && place[3] <= place[1] - p.size(2),
        "liif_fast: p lies outside of its map");
    Problem problem{};
    problem.rows = make_axis(std::max(to_int(place[0]), 1), ensemble);
    problem.columns = make_axis(std::max(to_int(place[1]), 1), ensemble);
    problem.p = static_cast<const uint32_t*>(p.const_data_ptr());
    problem.top = to_int(place[2]), problem.left = to_int(place[3]);
    problem.height = to_int(p.size(1)), problem.width = to_int(p.size(2));
    if (cell) {
        check_float(*cell, p, "cell");
        STD_TORCH_CHECK(cell->dim() >= 2 && cell->size(0) == p.size(0) && cell->size(cell->dim() - 1) == 2,
                        "liif_fast: cell must be [B, 2] or [B, Q, 2]");
        problem.cell = static_cast<const float*>(cell->const_data_ptr());
        problem.cell_steps[0] = cell->stride(0);
        problem.cell_steps[1] = cell->dim() == 3 ? cell->stride(1) : 0;
        problem.cell_steps[2] = cell->stride(cell->dim() - 1);
    }
    problem.out_dim = static_cast<int>(out_dim);
    problem.products = to_int((packed.numel() - kTableBytes) / kProductBytes);
    problem.packed = static_cast<const unsigned char*>(packed.const_data_ptr());
    return problem;
}

#if defined(LIIF_TRAP)
// What barrier_wait writes, by the warp's number in its block.
struct Hang {
    uint32_t set, block, barrier, parity;
};
alignas(4096) volatile Hang hangs[4096 / sizeof(Hang)];

void print_hangs() {
    for (size_t warp = 0; warp < sizeof hangs / sizeof(Hang); ++warp) {
        if (hangs[warp].set == 0) continue;
        // Shared memory begins at a multiple of 1024.
        const uint32_t number = (hangs[warp].barrier - kBarrierStart) % 1024 / 8;
        std::fprintf(stderr, "liif_fast: block %u, warp %d waits in vain for parity %u of the %s barrier of stage %u\n",
                     hangs[warp].block, static_cast<int>(warp), hangs[warp].parity, number < kStages ? "full" : "empty",
                     number % kStages);
    }
}

// Lets the current device's kernels write to `hangs`, which are printed at the end of the process.
void watch() {
    void* page = const_cast<Hang*>(hangs);
    static const bool once = [page] {
        check_cuda(cudaHostRegister(page, sizeof hangs, cudaHostRegisterMapped | cudaHostRegisterPortable), "trap");
        return std::atexit(print_hangs) == 0;
    }();
    STD_TORCH_CHECK(once, "liif_fast: what hangs cannot be printed");
    check_cuda(cudaHostGetDevicePointer(&page, page, 0), "trap");
    check_cuda(cudaMemcpyToSymbol(liif_hangs, &page, sizeof page), "trap");
}
#endif

// Sets the device of the runtime in this extension: PyTorch's guard sets that of its own.
void use(int32_t device) {
    int current = -1;
    check_cuda(cudaGetDevice(&current), "device");
    if (current != device) check_cuda(cudaSetDevice(device), "device");
}

// The number of blocks that fill a device. Each kernel asks once per device, because asking takes longer than a launch.
template <typename U, bool kEnsemble, int kCluster>
int resident_blocks(const cudaLaunchConfig_t& config, int32_t device) {
    static std::mutex mutex;
    static std::map<int32_t, int> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(device);
    if (found != known.end()) return found->second;
    int blocks = 0, major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device), "device");
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
    STD_TORCH_CHECK(major == 9 && minor == 0, "liif_fast: decode_sm90 and render_sm90 run on sm_90 only");
    const auto kernel = decode_sm90<U, kEnsemble, kCluster>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
               "shared memory");
    if constexpr (kCluster > 1) {
        // In a group with an odd number of multiprocessors one stays free, so a grid of all would run in two waves.
        int clusters = 0;
        check_cuda(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "clusters");
        STD_TORCH_CHECK(clusters > 0, "liif_fast: no cluster of ", kCluster, " blocks fits this GPU");
        blocks = clusters * kCluster;
    }
    known[device] = blocks;
    return blocks;
}

template <typename U, bool kEnsemble, int kCluster>
void launch(const Problem& problem, int32_t device) {
    constexpr int64_t kPerTile = queries_per_warp(kEnsemble) * 4 * kWarpgroups;
    // The blocks of a cluster all run the same number of tiles.
    const int64_t tiles = (problem.total + kPerTile * kCluster - 1) / (kPerTile * kCluster) * kCluster;
    cudaLaunchAttribute size{};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = kCluster, size.val.clusterDim.y = size.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kCluster), config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = current_stream(device);
    if constexpr (kCluster > 1) config.attrs = &size, config.numAttrs = 1;
    const int64_t blocks = resident_blocks<U, kEnsemble, kCluster>(config, device);
    config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(blocks, tiles)));
    check_cuda(cudaLaunchKernelEx(&config, decode_sm90<U, kEnsemble, kCluster>, problem, tiles), "launch");
}

template <typename U>
void launch_as(const Problem& problem, int32_t device, bool ensemble, int64_t cluster) {
    if (cluster == 1) {
        ensemble ? launch<U, true, 1>(problem, device) : launch<U, false, 1>(problem, device);
    } else {
        ensemble ? launch<U, true, kMaxCluster>(problem, device) : launch<U, false, kMaxCluster>(problem, device);
    }
}

void launch_any(const Problem& problem, const Tensor& p, bool ensemble, int64_t cluster) {
    STD_TORCH_CHECK(cluster == 1 || cluster == kMaxCluster, "liif_fast: cluster must be 1 or 2");
    if (problem.total == 0) return;
    STD_TORCH_CHECK(problem.height > 0 && problem.width > 0, "liif_fast: p holds no latent");
    const int32_t device = p.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    use(device);
#if defined(LIIF_TRAP)
    watch();
#endif
    is_bfloat(p) ? launch_as<Bfloat>(problem, device, ensemble, cluster)
                 : launch_as<Half>(problem, device, ensemble, cluster);
}

Tensor make_out(const Tensor& p, const std::vector<int64_t>& size) {
    is_bfloat(p);
    return torch::stable::new_empty(p, size, ScalarType::Float);
}

Tensor decode(const Tensor& p, const Tensor& coord, const std::optional<Tensor>& cell, const Tensor& packed,
              int64_t out_dim, bool ensemble, int64_t cluster) {
    Problem problem = start_problem(p, cell, packed, out_dim, ensemble, {p.size(1), p.size(2), 0, 0});
    check_float(coord, p, "coord");
    STD_TORCH_CHECK(coord.dim() == 3 && coord.size(0) == p.size(0) && coord.size(2) == 2,
                    "liif_fast: coord must be [B, Q, 2]");
    STD_TORCH_CHECK(!cell || (cell->dim() == 3 && cell->size(1) == coord.size(1)), "liif_fast: cell must be as coord");
    Tensor out = make_out(p, {coord.size(0), coord.size(1), out_dim});
    problem.coord = static_cast<const float*>(coord.const_data_ptr());
    problem.queries = coord.size(1), problem.total = coord.size(0) * coord.size(1);
    problem.out = out.mutable_data_ptr<float>();
    for (int i = 0; i < 3; ++i) {
        problem.coord_steps[i] = coord.stride(i);
        problem.out_steps[i] = out.stride(i);
    }
    launch_any(problem, p, ensemble, cluster);
    return out;
}

Tensor render(const Tensor& p, const std::optional<Tensor>& cell, const Tensor& packed, int64_t out_dim, bool ensemble,
              int64_t cluster, const std::vector<int64_t>& grid) {
    STD_TORCH_CHECK(grid.size() == 10, "liif_fast: grid must be ten integers");
    const int64_t grid_height = grid[4], grid_width = grid[5], top = grid[6], left = grid[7];
    const int64_t height = grid[8], width = grid[9];
    Problem problem = start_problem(p, cell, packed, out_dim, ensemble, {grid[0], grid[1], grid[2], grid[3]});
    STD_TORCH_CHECK(!cell || cell->dim() == 2, "liif_fast: cell must be [B, 2]");
    STD_TORCH_CHECK(
        top >= 0 && left >= 0 && height >= 0 && width >= 0 && top <= grid_height - height && left <= grid_width - width,
        "liif_fast: the window lies outside of its grid");
    Tensor out = make_out(p, {p.size(0), out_dim, height, width});
    problem.grid_rows = make_centres(std::max(to_int(grid_height), 1));
    problem.grid_columns = make_centres(std::max(to_int(grid_width), 1));
    problem.grid_top = to_int(top), problem.grid_left = to_int(left), problem.grid_width = to_int(width);
    problem.queries = height * width, problem.total = p.size(0) * height * width;
    problem.out = out.mutable_data_ptr<float>();
    problem.out_steps[0] = out_dim * height * width, problem.out_steps[1] = 1, problem.out_steps[2] = height * width;
    launch_any(problem, p, ensemble, cluster);
    return out;
}

// The number of products per packing launch, whose argument describes them; enough for all usual networks.
constexpr int kPackedAtOnce = 16;

template <typename S>
struct Packing {
    Source<S> weight[kPackedAtOnce], bias[kPackedAtOnce], affine, last, last_bias;
    int first, products, terms, out;
};

// One block per output channel of each product, and one for the tables.
template <typename T, typename S>
__global__ void pack_sm90(const __grid_constant__ Packing<S> from, unsigned char* to) {
    const int product = static_cast<int>(blockIdx.y), n = static_cast<int>(blockIdx.x);
    const int k = static_cast<int>(threadIdx.x);
    unsigned char* at = to + static_cast<int64_t>(from.first + product) * kProductBytes;
    if (product < from.products) {
        pack_weight<T>(from.weight[product], from.first + product == 0, n, k, at);
        if (k == 0) pack_bias(from.bias[product], n, at);
    } else if (n == 0) {
        pack_table<T>(from.affine, from.terms, from.last, from.last_bias, from.out, k, reinterpret_cast<float*>(at));
    }
}

template <typename S>
Source<S> source(const Tensor& t, int64_t first_column = 0) {
    const int64_t column = t.dim() == 2 ? t.stride(1) : 0;
    return {static_cast<const S*>(t.const_data_ptr()) + first_column * column, t.stride(0), column};
}

template <typename T, typename S>
void pack_from(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int terms, unsigned char* to,
               cudaStream_t stream) {
    const size_t last = weights.size() - 1;
    const int products = static_cast<int>(last) - 1;
    Packing<S> packing{};
    packing.affine = source<S>(weights[0], weights[0].size(1) - terms), packing.terms = terms;
    packing.last = source<S>(weights[last]), packing.last_bias = source<S>(biases[last]);
    packing.out = static_cast<int>(weights[last].size(0));
    for (int first = 0; first < products; first += kPackedAtOnce) {
        packing.first = first, packing.products = std::min(products - first, kPackedAtOnce);
        for (int i = 0; i < packing.products; ++i) {
            packing.weight[i] = source<S>(weights[first + i + 1]), packing.bias[i] = source<S>(biases[first + i + 1]);
        }
        const int tables = first + packing.products == products;
        pack_sm90<T, S><<<dim3(kHidden, packing.products + tables), kHidden, 0, stream>>>(packing, to);
        check_cuda(cudaGetLastError(), "launch");
    }
}

template <typename T>
void pack_to(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int terms, unsigned char* to,
             cudaStream_t stream) {
    switch (weights[0].scalar_type()) {
        case ScalarType::Float:
            return pack_from<T, float>(weights, biases, terms, to, stream);
        case ScalarType::Half:
            return pack_from<T, __half>(weights, biases, terms, to, stream);
        case ScalarType::BFloat16:
            return pack_from<T, __nv_bfloat16>(weights, biases, terms, to, stream);
        default:
            STD_TORCH_CHECK(false, "liif_fast: pack_sm90 takes float32, float16 or bfloat16");
    }
}

Tensor pack(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t terms, bool bfloat) {
    check_packable(weights, biases, terms);
    for (size_t i = 0; i < weights.size(); ++i) {
        STD_TORCH_CHECK(
            weights[i].get_device() == weights[0].get_device() && biases[i].get_device() == weights[0].get_device(),
            "liif_fast: weights and biases must be on one device");
    }
    const int32_t device = weights[0].get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    use(device);
    Tensor packed = torch::stable::new_empty(weights[0], {packed_bytes(static_cast<int64_t>(weights.size()) - 2)},
                                             ScalarType::Byte);
    auto* to = static_cast<unsigned char*>(packed.mutable_data_ptr());
    const cudaStream_t stream = current_stream(device);
    bfloat ? pack_to<__nv_bfloat16>(weights, biases, static_cast<int>(terms), to, stream)
           : pack_to<__half>(weights, biases, static_cast<int>(terms), to, stream);
    return packed;
}

#if defined(LIIF_TRACE)
// The clock at block 0's turns, int64 [warpgroups, turns, asked, given, complete], zeros behind the last one; forgets
// them.
Tensor trace(const Tensor& like) {
    Tensor found = torch::stable::new_empty(like, {kWarpgroups, kTraced, kEvents}, ScalarType::Long);
    void* from = nullptr;
    check_cuda(cudaGetSymbolAddress(&from, traced), "trace");
    const cudaStream_t stream = current_stream(like.get_device_index());
    check_cuda(cudaMemcpyAsync(found.mutable_data_ptr(), from, sizeof traced, cudaMemcpyDeviceToDevice, stream),
               "trace");
    check_cuda(cudaMemsetAsync(from, 0, sizeof traced, stream), "trace");
    return found;
}
#endif

}  // namespace
}  // namespace liif::sm90

// liif_fast/extension.py looks for this mark in the file before loading it.
__attribute__((visibility("default"))) extern const char liif_fast_interface_sm90[];
const char liif_fast_interface_sm90[] = "liif_fast/_C_sm90 interface 3;";

#if defined(LIIF_TRACE)
STABLE_TORCH_LIBRARY_FRAGMENT(liif_fast, m) {
    m.def("trace_sm90(Tensor like) -> Tensor");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(liif_fast, CUDA, m) {
#if defined(LIIF_TRACE)
    m.impl("trace_sm90", TORCH_BOX(&liif::sm90::trace));
#endif
    m.impl("pack_sm90", TORCH_BOX(&liif::sm90::pack));
    m.impl("decode_sm90", TORCH_BOX(&liif::sm90::decode));
    m.impl("render_sm90", TORCH_BOX(&liif::sm90::render));
}
