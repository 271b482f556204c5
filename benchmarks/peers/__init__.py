"""mpsearch beside the tools that users would pick instead: same weights, images, bytes and processor."""
