// Reads a pytorch_model.bin (or a shard of one): what torch.save writes since version 1.6, a zip of stored
// entries.
#pragma once

#include <memory>

#include "engine/base/status.h"
#include "engine/checkpoint/tensor_table.h"

namespace t6 {

// Adds every tensor of the file to `table`. Tensors that share a storage get views of the same bytes. The CRC
// of each entry that is used is checked. Errors name the file, and the tensor, the entry or the offset.
Status AddTorchZip(std::unique_ptr<FileBytes> file, TensorTable& table);

}  // namespace t6
