namespace chipmunk::cpu {
namespace {

constexpr AttentionKernels kAttentionKernels = {};

}  // namespace
}  // namespace chipmunk::cpu
