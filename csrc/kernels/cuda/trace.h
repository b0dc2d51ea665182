// How operations start trace updates on CUDA. No torch and no CUDA header here.
#pragma once
#include "kernels/trace.h"

namespace rx {
namespace cuda {

constexpr int64_t kTraceSignals = 4;  // steps with a signal in one launch; more take a launch for each four

// Each starts its work on the stream and returns null, or the message of an error. T: float, double.
template <class T>
const char* trace_step(const TraceStep<T>& p, void* stream);
template <class T>
const char* rank1_trace_step(const RankOneStep<T>& p, void* stream);

}  // namespace cuda
}  // namespace rx
