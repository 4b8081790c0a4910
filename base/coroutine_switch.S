/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Switching stacks: everything that the calling convention makes a function keep is pushed on the
 * old stack and popped from the new one.  See base/coroutine_switch.h.
 *
 * The object claims indirect-branch protection but not a shadow stack: going on on another stack is
 * what a shadow stack is there to stop.
 */

#if defined(__x86_64__) && !defined(__ILP32__) && !defined(EVNBD_COROUTINE_UCONTEXT)

    .text
    .p2align 4
    .globl coroutine_switch_stacks
    .hidden coroutine_switch_stacks
    .type coroutine_switch_stacks, @function
coroutine_switch_stacks:
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    stmxcsr (%rsp)
    fnstcw 4(%rsp)

    /* Both frames have one layout, so the unwind rules above hold on the new stack as well. */
    movq %rsp, (%rdi)
    movq %rsi, %rsp

    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    /* Not ret: the processor predicts returns from calls, and this is another stack's. */
    popq %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    notrack jmpq *%rcx
    .cfi_endproc
    .size coroutine_switch_stacks, . - coroutine_switch_stacks

/* First frame of a stack: entry function in r12, its argument in r13. Backtraces end here. */
    .p2align 4
    .globl coroutine_first_frame
    .hidden coroutine_first_frame
    .type coroutine_first_frame, @function
coroutine_first_frame:
    .cfi_startproc
    .cfi_undefined %rip
    endbr64
    movq %r13, %rdi
    callq *%r12
    ud2
    .cfi_endproc
    .size coroutine_first_frame, . - coroutine_first_frame

    .section .note.gnu.property, "a", @note
    .p2align 3
    .long 4, 16, 5
    .asciz "GNU"
    .long 0xc0000002, 4, 1, 0

#elif defined(__aarch64__) && !defined(EVNBD_COROUTINE_UCONTEXT)

    .text
    .p2align 4
    .globl coroutine_switch_stacks
    .hidden coroutine_switch_stacks
    .type coroutine_switch_stacks, %function
coroutine_switch_stacks:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-176]!
    .cfi_adjust_cfa_offset 176
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mrs x3, fpcr
    str x3, [sp, #160]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldr x3, [sp, #160]
    msr fpcr, x3
    ldp d14, d15, [sp, #144]
    ldp d12, d13, [sp, #128]
    ldp d10, d11, [sp, #112]
    ldp d8, d9, [sp, #96]
    ldp x27, x28, [sp, #80]
    ldp x25, x26, [sp, #64]
    ldp x23, x24, [sp, #48]
    ldp x21, x22, [sp, #32]
    ldp x19, x20, [sp, #16]
    ldp x29, x30, [sp], #176
    .cfi_adjust_cfa_offset -176
    .cfi_restore x29
    .cfi_restore x30
    ret
    .cfi_endproc
    .size coroutine_switch_stacks, . - coroutine_switch_stacks

/* First frame of a stack: entry function in x19, its argument in x20. Backtraces end here. */
    .p2align 4
    .globl coroutine_first_frame
    .hidden coroutine_first_frame
    .type coroutine_first_frame, %function
coroutine_first_frame:
    .cfi_startproc
    .cfi_undefined x30
    mov x0, x20
    blr x19
    brk #1
    .cfi_endproc
    .size coroutine_first_frame, . - coroutine_first_frame

    .section .note.gnu.property, "a", %note
    .p2align 3
    .long 4, 16, 5
    .asciz "GNU"
    .long 0xc0000000, 4, 1, 0

#endif

    .section .note.GNU-stack, "", %progbits
