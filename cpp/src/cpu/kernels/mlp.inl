namespace chipmunk::cpu {
namespace {

constexpr MlpKernels kMlpKernels = {};

}  // namespace
}  // namespace chipmunk::cpu
