// Node-API as this binding uses it: version 8, C++ exceptions on. A worker can be terminated in the middle of a call;
// an exception that its environment no longer takes is then dropped instead of ending the process.
#pragma once

#define NAPI_VERSION 8
#define NODE_ADDON_API_CPP_EXCEPTIONS
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS

#include <napi.h>
