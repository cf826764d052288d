// The compute shader of `no43-guest work`; what it computes is in `gpu/answer.rs`.
// chain.spv beside it is made of this by:
//   glslangValidator -V --target-env vulkan1.0 chain.comp -o c.spv && spirv-opt -O --strip-debug c.spv -o chain.spv
#version 450
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Data { uint words[]; };
layout(push_constant) uniform Push { uint count; uint seed; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= count) return;
    uint x = words[i] ^ seed;
    for (uint round = 0u; round < 64u; round++) {
        x = x * 1664525u + (i + 1013904223u);
        x ^= x >> 13;
    }
    words[i] = x;
}
