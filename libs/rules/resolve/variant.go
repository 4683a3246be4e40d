package resolve

// maxVariants bounds the alternatives of one condition.
const maxVariants = 100
