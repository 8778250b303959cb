namespace chipmunk::cpu {
namespace {

constexpr ColumnsKernels kColumnsKernels = {};

}  // namespace
}  // namespace chipmunk::cpu
