// Registers the CPU kernels. The schemas are defined in Python (liif_fast/ops/), where their fakes and gradients are,
// so that they exist without this extension too; loading this library adds the implementations.
#if __has_include(<Python.h>)
#include <Python.h>
#endif

#include "operators.h"

namespace liif {

std::string cpu_isa() {
    return isa_name();
}

}  // namespace liif

// Looked for in the file before it is loaded (liif_fast/extension.py). Exported, since a linker that drops what nothing
// refers to (-Wl,--gc-sections) would drop a hidden symbol.
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
extern const char liif_fast_interface[];
const char liif_fast_interface[] = "liif_fast/_C interface 1;";

STABLE_TORCH_LIBRARY_IMPL(liif_fast, CPU, m) {
    m.impl("project", TORCH_BOX(&liif::project));
    m.impl("decode", TORCH_BOX(&liif::decode));
    m.impl("decode_direct", TORCH_BOX(&liif::decode_direct));
    m.impl("render", TORCH_BOX(&liif::render));
    m.impl("decode_backward", TORCH_BOX(&liif::decode_backward));
    m.impl("render_backward", TORCH_BOX(&liif::render_backward));
    m.impl("gather_corners", TORCH_BOX(&liif::gather_corners));
    m.impl("gather_corners_backward", TORCH_BOX(&liif::gather_corners_backward));
    m.impl("mlp", TORCH_BOX(&liif::mlp));
    m.impl("mlp_backward", TORCH_BOX(&liif::mlp_backward));
    m.impl("attend", TORCH_BOX(&liif::attend));
    m.impl("attend_backward", TORCH_BOX(&liif::attend_backward));
    m.impl("bicubic_resize", TORCH_BOX(&liif::bicubic_resize));
    m.impl("pack_sm90", TORCH_BOX(&liif::pack_sm90));
}

STABLE_TORCH_LIBRARY_IMPL(liif_fast, CompositeExplicitAutograd, m) {
    m.impl("cpu_isa", TORCH_BOX(&liif::cpu_isa));
}

#if defined(Py_PYTHON_H)  // an empty module, so that `import liif_fast._C` loads it too
extern "C" {

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) {
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&module);
}
}
#endif
