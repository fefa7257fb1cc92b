// The nine kernels as JavaScript calls them: KernelArguments and KernelResults of src/kernels/kernels.ts.
#pragma once

#include <string>

#include "executor.h"
#include "js.h"

namespace desap {

// Checks the arguments, takes hold of their memory and makes room for the results. Throws Fault.
Call kernel_call(Napi::Env, const std::string& kernel, const Napi::Value& arguments, bool sync);

}  // namespace desap
