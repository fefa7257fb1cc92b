// The kernels as JavaScript calls them: KernelArguments and KernelResults of src/kernels/kernels.ts.
#pragma once

#include <string>

#include "executor.h"
#include "js.h"

namespace desap {

// Checks the arguments, takes hold of their memory and makes room for the results. Throws Fault.
Prepared prepare_kernel(Napi::Env, const std::string& kernel, const Napi::Value& arguments, bool sync);

}  // namespace desap
