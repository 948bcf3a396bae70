// csrc/cuda's plan compiled for the host, for test_plan.py.
#include <cstring>

#include "thread.h"

using namespace liif::sm90;

extern "C" {

// where: map height, map width, p's top, left, height, width, Q, total, grid height, width, the window's top, left,
// width. coord [B, Q, 2] or null; cell [B, Q, 2] (or with step 0) or null.
void* problem(const int64_t* where, int ensemble, const uint32_t* p, const float* coord, const float* cell,
              int64_t cell_step) {
    const auto at = [&](int i) { return static_cast<int>(where[i]); };
    auto* made = new Problem{};
    made->rows = make_axis(at(0), ensemble);
    made->columns = make_axis(at(1), ensemble);
    made->p = p;
    made->top = at(2), made->left = at(3), made->height = at(4), made->width = at(5);
    made->queries = where[6], made->total = where[7];
    made->grid_rows = make_centres(at(8)), made->grid_columns = make_centres(at(9));
    made->grid_top = at(10), made->grid_left = at(11), made->grid_width = at(12);
    made->coord = coord;
    made->cell = cell;
    const int64_t q = where[6];
    const int64_t coord_steps[] = {2 * q, 2, 1}, cell_steps[] = {cell_step ? 2 * q : 2, cell_step, 1};
    std::memcpy(made->coord_steps, coord_steps, sizeof coord_steps);
    std::memcpy(made->cell_steps, cell_steps, sizeof cell_steps);
    return made;
}
void forget(void* problem) {
    delete static_cast<Problem*>(problem);
}

// One thread's rows: rel [2, 2], weight [2], latent row of p [2].
void rows_of(const void* problem, int ensemble, int64_t first, int lane, float* rel, float* weight, int64_t* latent) {
    const auto& p = *static_cast<const Problem*>(problem);
    Rows rows;
    if (ensemble) {
        find_rows<true>(p, first, make_lane(lane), rows);
    } else {
        find_rows<false>(p, first, make_lane(lane), rows);
    }
    std::memcpy(rel, rows.rel, sizeof rows.rel);
    std::memcpy(weight, rows.weight, sizeof rows.weight);
    for (int low = 0; low < 2; ++low) latent[low] = rows.latent[low];
}
}
