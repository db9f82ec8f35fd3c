package engine

import "lode/sdk/abi"

// ABI is the version of the contract with guests that this engine speaks.
const ABI = abi.Version
