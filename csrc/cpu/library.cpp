// Registers the CPU kernels. Python (liif_fast/ops/) defines the schemas, fakes and gradients, so that they exist
// without this extension; loading this library adds the implementations.
#if __has_include(<Python.h>)
#include <Python.h>
#endif

#include "operators.h"

namespace liif {

std::string cpu_isa() {
    return isa_name();
}

bool cpu_has_bfloat16() {
    return has_bfloat16();
}

std::string cpu_missing_amx() {
    return missing_amx();
}

std::string cpu_use_amx(bool on) {
    return use_amx(on);
}

namespace {

// An operator that other backends also implement: its last argument names one of them; without it these kernels run.
template <auto function>
struct Shared;

template <typename Result, typename... Args, Result (*function)(Args...)>
struct Shared<function> {
    static Result call(Args... args, const std::optional<std::string>& backend) {
        STD_TORCH_CHECK(!backend, "liif_fast: the backend '", *backend, "' does not run on cpu tensors");
        return function(args...);
    }
};

}  // namespace
}  // namespace liif

// liif_fast/extension.py looks for this mark in the file before loading it. It is exported, because a linker that drops
// unreferenced symbols (-Wl,--gc-sections) would drop a hidden one.
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
extern const char liif_fast_interface[];
const char liif_fast_interface[] = "liif_fast/_C interface 13;";

STABLE_TORCH_LIBRARY_IMPL(liif_fast, CPU, m) {
    m.impl("project", TORCH_BOX(&liif::Shared<&liif::project>::call));
    m.impl("decode", TORCH_BOX(&liif::Shared<&liif::decode>::call));
    m.impl("decode_direct", TORCH_BOX(&liif::decode_direct));
    m.impl("render", TORCH_BOX(&liif::Shared<&liif::render>::call));
    m.impl("decode_backward", TORCH_BOX(&liif::Shared<&liif::decode_backward>::call));
    m.impl("render_backward", TORCH_BOX(&liif::Shared<&liif::render_backward>::call));
    m.impl("gather_corners", TORCH_BOX(&liif::Shared<&liif::gather_corners>::call));
    m.impl("gather_corners_backward", TORCH_BOX(&liif::Shared<&liif::gather_corners_backward>::call));
    m.impl("fused_mlp", TORCH_BOX(&liif::Shared<&liif::fused_mlp>::call));
    m.impl("fused_mlp_backward", TORCH_BOX(&liif::Shared<&liif::fused_mlp_backward>::call));
    m.impl("attend_corners", TORCH_BOX(&liif::Shared<&liif::attend_corners>::call));
    m.impl("attend_corners_backward", TORCH_BOX(&liif::Shared<&liif::attend_corners_backward>::call));
    m.impl("fourier_decode", TORCH_BOX(&liif::Shared<&liif::fourier_decode>::call));
    m.impl("fourier_decode_backward", TORCH_BOX(&liif::Shared<&liif::fourier_decode_backward>::call));
    m.impl("modulated_decode", TORCH_BOX(&liif::Shared<&liif::modulated_decode>::call));
    m.impl("modulated_decode_backward", TORCH_BOX(&liif::Shared<&liif::modulated_decode_backward>::call));
    m.impl("bicubic_resize", TORCH_BOX(&liif::bicubic_resize));
    m.impl("conv3x3", TORCH_BOX(&liif::conv3x3));
    m.impl("conv3x3_backward", TORCH_BOX(&liif::conv3x3_backward));
    m.impl("pack_sm90", TORCH_BOX(&liif::pack_sm90));
}

STABLE_TORCH_LIBRARY_IMPL(liif_fast, CompositeExplicitAutograd, m) {
    m.impl("cpu_isa", TORCH_BOX(&liif::cpu_isa));
    m.impl("cpu_has_bfloat16", TORCH_BOX(&liif::cpu_has_bfloat16));
    m.impl("cpu_missing_amx", TORCH_BOX(&liif::cpu_missing_amx));
    m.impl("cpu_use_amx", TORCH_BOX(&liif::cpu_use_amx));
}

#if defined(Py_PYTHON_H)  // an empty module, so that `import liif_fast._C` also loads it
extern "C" {

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) {
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&module);
}
}
#endif
