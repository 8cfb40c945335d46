// Launches are made by the same source as on a GPU, over the stand-in for the CUDA runtime.
#pragma once

#include "../../cuda/primitives/launch.h"
#include "../runtime.h"
