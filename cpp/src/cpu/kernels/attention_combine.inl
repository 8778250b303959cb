// The softmax algebra of two parts, row by row.

namespace chipmunk::cpu {
namespace {

// to = function(a, b) elementwise, where function works on vectors.
template <class Type, class Function>
inline void combine_rows(const typename Type::Storage* a, const typename Type::Storage* b,
                         typename Type::Storage* to, int head_dim, const Function& function) {
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    Type::store(to + d, function(Type::load(a + d), Type::load(b + d)));
  }
  if (d < head_dim) {
    const int dims = head_dim - d;
    store_first<Type>(to + d,
                      function(load_first<Type>(a + d, dims), load_first<Type>(b + d, dims)), dims);
  }
}

template <class Type>
void merge(const AttentionRows& rows) {
  typedef typename Type::Storage Storage;
  for (int64_t i = 0; i < rows.rows; ++i) {
    const float a_lse = rows.a_lse[i * rows.a_lse_stride];
    const float b_lse = rows.b_lse[i * rows.b_lse_stride];
    const bool has_a = a_lse != -__builtin_inff(), has_b = b_lse != -__builtin_inff();
    float share_a, share_b;
    rows.lse[i * rows.lse_stride] = merge_lse(a_lse, b_lse, share_a, share_b);
    combine_rows<Type>((const Storage*)rows.a_out + i * rows.a_out_stride,
                       (const Storage*)rows.b_out + i * rows.b_out_stride,
                       (Storage*)rows.out + i * rows.out_stride, rows.head_dim, [&](Vf a, Vf b) {
                         return (has_a ? a * share_a : Vf{}) + (has_b ? b * share_b : Vf{});
                       });
  }
}

// With w the share of b in a: lse = a_lse + log(1 - w), out = a + (a - b) w / (1 - w). Where 1 - w
// is below a sixteenth of the dtype's epsilon, a - b is noise that the division would blow up: out
// is then a. It is 0 where nothing is left at all.
template <class Type>
void rest_of(const AttentionRows& rows) {
  typedef typename Type::Storage Storage;
  const float inf = __builtin_inff();
  for (int64_t i = 0; i < rows.rows; ++i) {
    const float whole = rows.a_lse[i * rows.a_lse_stride];
    const float selected = rows.b_lse[i * rows.b_lse_stride];
    float left = -__builtin_expm1f(selected - whole);  // 1 - w
    if (selected == -inf) left = 1.0f;
    if (whole == -inf) left = 0.0f;
    const bool nothing = left <= 0.0f;
    const bool usable = left < 1.0f && left >= Type::epsilon / 16;
    const float factor = (1.0f - left) / left;
    rows.lse[i * rows.lse_stride] = nothing ? -inf : whole + __builtin_logf(left);
    combine_rows<Type>((const Storage*)rows.a_out + i * rows.a_out_stride,
                       (const Storage*)rows.b_out + i * rows.b_out_stride,
                       (Storage*)rows.out + i * rows.out_stride, rows.head_dim, [&](Vf a, Vf b) {
                         if (nothing) return Vf{};
                         return usable ? a + (a - b) * factor : a;
                       });
  }
}

}  // namespace
}  // namespace chipmunk::cpu
