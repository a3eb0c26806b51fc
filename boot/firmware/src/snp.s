# The instructions that only an SNP guest executes, and the last jump. They have a page of their own: whoever watches them
# from outside, as the tests do, slows down nothing else.

.section .snp, "ax"
.code64
# (address, size, validate) -> return code, and the carry flag in bit 32
.globl snp_pvalidate
snp_pvalidate:
    movq %rdi, %rax
    movl %esi, %ecx
    pvalidate
    setc %dl
    movzbl %dl, %edx
    shlq $32, %rdx
    movl %eax, %eax
    orq %rdx, %rax
    ret

# (value of the GHCB register) -> the register's value after the exit
.globl snp_vmgexit
snp_vmgexit:
    movl $0xc0010130, %ecx
    movl %edi, %eax
    movq %rdi, %rdx
    shrq $32, %rdx
    wrmsr
    rep vmmcall
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    ret

# (entry, boot_params): no return
.globl start_linux
start_linux:
    movq %rdi, %rax
    xorl %edi, %edi
    xorl %ebp, %ebp
    xorl %ebx, %ebx
    jmp *%rax
.balign 4096, 0xcc
